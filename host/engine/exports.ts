/** The calls that the core exports, by room. Addresses are numbers (u32: apply `>>> 0`), u64 values bigint. */

/** A function the core does not export yet fails loudly by name, see core.ts. */
export interface CoreExports {
  // assembly/memory
  memoryInit(limitPages: number): number
  backingCreate(pages: number): number
  backingFree(backing: number): void
  backingRead(backing: number, offset: bigint, to: number, n: number): number
  backingWrite(backing: number, offset: bigint, from: number, n: number): number
  slotSet(vm: number, id: number, gpa: bigint, size: bigint, flags: number, backing: number, offsetPages: number): number
  dirtyLog(vm: number, id: number, to: number, offset: number, most: number): number
  dirtyClear(vm: number, id: number, from: number, offset: number, n: number): number
  ringReset(vm: number): number
  slotBind(vm: number, id: number, gmem: number, offsetPages: number, flags: number): void
  slotUnbind(vm: number, id: number): void
  gpaFault(vm: number, gpa: bigint): number
  zoneAdd(vm: number, address: bigint, size: number, pio: number): number
  zoneRemove(vm: number, address: bigint, size: number, pio: number): void
  isPrivate(vm: number, gpa: bigint): number
  privateSet(vm: number, first: bigint, count: bigint, on: number): number
  backingRetain(backing: number): void
  backingFill(backing: number, first: number, count: number): number
  backingPunch(backing: number, first: number, count: number): void
  pspEncrypt(backing: number, offset: bigint, n: number, asid: number): number
  pspRead(backing: number, offset: bigint, to: number, n: number, asid: number): number
  pspWrite(backing: number, offset: bigint, from: number, n: number, asid: number): number
  setKey(asid: number, low: bigint, high: bigint): void
  probe(s: number, va: bigint): bigint
  // assembly/cpu
  msrGet(s: number, index: number): number
  msrSet(s: number, index: number): number
  cpuidChanged(s: number): void
  cpuidAnswer(s: number, leaf: number, index: number): void
  cpuGetFlags(s: number): bigint
  gpaRead(vm: number, gpa: bigint, to: number, n: number): number
  gpaWrite(vm: number, gpa: bigint, from: number, n: number): number
  cpuSetFlags(s: number, value: bigint): void
  cpuModeChanged(s: number): void
  cpuInject(s: number, vector: number, hasError: number, error: number, nmi: number): number
  // assembly/kvm
  vmCreate(): number
  vmDestroy(vm: number): void
  vcpuCreate(vm: number, id: number): number
  vcpuDestroy(s: number): void
  vcpuRun(s: number, maxInstructions: bigint): number
  /** post_kvm_run_save, where KVM_RUN ends before it enters the core. */
  saveRunState(s: number): void
  vmsaBuild(s: number, to: number): void
  vmsaSeal(s: number): number
  vmsaMove(from: number, to: number): void
  vmsaHostRead(s: number, offset: number, to: number, n: number): number
  vmsaHostWrite(s: number, offset: number, from: number, n: number): number
  createIrqchip(vm: number, split: number): void
  createPit(vm: number, flags: number): void
  irqLine(vm: number, gsi: number, level: number): number
  irqLineStatus(vm: number, gsi: number, level: number): number
  irqResample(vm: number, gsi: number, level: number): number
  resampleGsi(vm: number, gsi: number, on: number): number
  takeHostWork(vm: number): void
  takeAck(vm: number, gsi: number): number
  addRouting(vm: number, from: number, count: number): number
  reserveRoutes(vm: number, count: number): void
  x2apicApi(vm: number, flags: number): void
  ioeventAdd(vm: number, address: bigint, value: bigint, length: number, flags: number): number
  ioeventRemove(vm: number, index: number): void
  ioeventNotify(vm: number, index: number, on: number): void
  ioeventTake(vm: number, index: number): bigint
  setRouting(vm: number, from: number, count: number): number
  signalMsi(low: number, high: number, data: number, vm: number): number
  setUserDeadline(vm: number, ns: bigint): void
  vmClock(vm: number): bigint
  queueNmi(s: number): void
  acceptEvents(s: number): void
  queueSmi(s: number): number
  clockStale(vm: number): void
  masterClock(vm: number): number
  masterUpdate(vm: number): void
  smmChanged(s: number, on: number): void
  lapicGet(s: number, to: number): void
  lapicSet(s: number, from: number): void
  ioapicGet(vm: number, to: number): void
  ioapicSet(vm: number, from: number): void
  picGet(vm: number, slave: number, to: number): void
  picSet(vm: number, slave: number, from: number): void
  pitGet(vm: number, to: number): void
  pitSet(vm: number, from: number): void
  pitSetReinject(vm: number, on: number): void
  msrFilterBegin(vm: number, deny: number): number
  msrFilterRange(vm: number, flags: number, count: number, base: number, from: number): number
  msrFilterFree(vm: number): void
}

export const CORE_EXPORTS = [
  'memoryInit',
  'backingCreate',
  'backingFree',
  'backingRead',
  'backingWrite',
  'slotSet',
  'dirtyLog',
  'dirtyClear',
  'ringReset',
  'slotBind',
  'slotUnbind',
  'gpaFault',
  'zoneAdd',
  'zoneRemove',
  'isPrivate',
  'privateSet',
  'backingRetain',
  'backingFill',
  'backingPunch',
  'pspEncrypt',
  'pspRead',
  'pspWrite',
  'setKey',
  'probe',
  'msrGet',
  'msrSet',
  'cpuidChanged',
  'cpuidAnswer',
  'cpuGetFlags',
  'gpaRead',
  'gpaWrite',
  'cpuSetFlags',
  'cpuModeChanged',
  'cpuInject',
  'vmCreate',
  'vmDestroy',
  'vcpuCreate',
  'vcpuDestroy',
  'vcpuRun',
  'saveRunState',
  'vmsaBuild',
  'vmsaSeal',
  'vmsaMove',
  'vmsaHostRead',
  'vmsaHostWrite',
  'createIrqchip',
  'createPit',
  'irqLine',
  'irqLineStatus',
  'irqResample',
  'resampleGsi',
  'takeAck',
  'takeHostWork',
  'addRouting',
  'reserveRoutes',
  'x2apicApi',
  'ioeventAdd',
  'ioeventRemove',
  'ioeventNotify',
  'ioeventTake',
  'setRouting',
  'signalMsi',
  'setUserDeadline',
  'vmClock',
  'queueNmi',
  'acceptEvents',
  'queueSmi',
  'clockStale',
  'masterClock',
  'masterUpdate',
  'smmChanged',
  'lapicGet',
  'lapicSet',
  'ioapicGet',
  'ioapicSet',
  'picGet',
  'picSet',
  'pitGet',
  'pitSet',
  'pitSetReinject',
  'msrFilterBegin',
  'msrFilterRange',
  'msrFilterFree',
] as const satisfies readonly (keyof CoreExports)[]
