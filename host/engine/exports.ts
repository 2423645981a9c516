/** The calls that the core exports, by room. Addresses are numbers, u64 values bigint. */

/** A function the core does not export yet fails loudly by name, see core.ts. */
export interface CoreExports {
  // assembly/memory
  backingCreate(pages: number): number
  backingFree(backing: number): void
  backingRead(backing: number, offset: bigint, to: number, n: number): number
  backingWrite(backing: number, offset: bigint, from: number, n: number): number
  slotSet(vm: number, id: number, gpa: bigint, size: bigint, flags: number, backing: number, offsetPages: number): number
  pspEncrypt(backing: number, offset: bigint, n: number, asid: number): number
  pspRead(backing: number, offset: bigint, to: number, n: number, asid: number): number
  pspWrite(backing: number, offset: bigint, from: number, n: number, asid: number): number
  setKey(asid: number, low: bigint, high: bigint): void
  // assembly/kvm
  vmCreate(): number
  vmDestroy(vm: number): void
  vcpuCreate(vm: number, id: number): number
  vcpuDestroy(s: number): void
  vcpuRun(s: number, maxInstructions: bigint): number
  cpuGetFlags(s: number): bigint
  cpuSetFlags(s: number, value: bigint): void
  cpuModeChanged(s: number): void
}

export const CORE_EXPORTS = [
  'backingCreate', 'backingFree', 'backingRead', 'backingWrite', 'slotSet', 'pspEncrypt', 'pspRead', 'pspWrite', 'setKey',
  'vmCreate', 'vmDestroy', 'vcpuCreate', 'vcpuDestroy', 'vcpuRun', 'cpuGetFlags', 'cpuSetFlags', 'cpuModeChanged',
] as const satisfies readonly (keyof CoreExports)[]
