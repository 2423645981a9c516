/** `cloister/vmm`: a small virtual machine monitor above the KVM interface. */
export { CloisterError } from '../errors.ts'
export { Machine } from './machine.ts'
export type { LaunchRecord, LaunchStep } from './sev-launch.ts'
export { vcpuSignature, vcpuTypes } from './cpu-types.ts'
export {
  imageModes,
  machineTypes,
  traceKindNames,
  type ExitReason,
  type FlatImage,
  type ImageMode,
  type MachineOptions,
  type MachineType,
  type RunReport,
  type RunResult,
  type TraceKind,
} from './options.ts'
