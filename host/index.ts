/** Cloister: confidential virtual machines and the KVM interface that launches and runs them. */
export { CloisterError, KvmError, type Refusal } from './errors.ts'
export {
  CAP,
  ERRNO,
  EXIT,
  REQUEST,
  SEV_COMMAND,
  SEV_ISSUE,
  SEV_ISSUE_CMD,
  TDX_COMMAND,
  VCPU_MMAP_SIZE,
  VM_TYPE,
} from './generated/kvm-abi.ts'
export { RUN } from './generated/kvm.ts'
export { FIRMWARE_STATUS, GUEST_STATE, SEV_POLICY } from './generated/psp.ts'
export type { CpuidEntry } from './cpuid/entries.ts'
export type * from './kvm/exits.ts'
export { decodeExit, exitName } from './kvm/exits.ts'
export type { Host, IoctlArgument } from './kvm/kernel.ts'
export { Kvm, type KvmOptions, openKvm, type VmType, type WasmSource } from './kvm/kvm.ts'
export type { Mapping } from './kvm/mapping.ts'
export { type RunNotes, WHY } from './kvm/run-notes.ts'
export type { Regs, Segment, Sregs, TableRegister } from './kvm/registers.ts'
export { kickVcpu, type MsrValue, Vcpu } from './kvm/typed-vcpu.ts'
export { type LaunchStart, type MemoryRegion, type MigrationPacket, type SevCommandName, type SevResult, Vm } from './kvm/typed-vm.ts'
export * from './policy/index.ts'

/** Version of the package, as in package.json. */
export const version = '0.1.0'
export { sevRootCertificates } from './firmware/psp/roots.ts'
export {
  createLaunchSession,
  type LaunchSession,
  launchMeasurement,
  packSecret,
  type SecretPacket,
  type TransportKeys,
} from './firmware/psp/session.ts'
