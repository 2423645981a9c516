/** Exports of the kernel's fast paths. */
export { acceptInit as acceptEvents, pollEvents } from './events'
export { cpuGetFlags, cpuidChanged, cpuInject, cpuModeChanged, cpuSetFlags, msrGet, msrSet } from './registers'
export { createIrqchip, createPit, hasPic, hasPit, vcpuCreate, vcpuDestroy, vmCreate, vmDestroy } from './vm'
export { saveRunState } from './exits'
export { vcpuKick, vcpuRun, vcpuRunSlice, vcpuWhy } from './run'
export { setUserDeadline, vmClock } from './time'
export {
  addRouting,
  irqLine,
  irqLineStatus,
  irqResample,
  resampleGsi,
  reserveRoutes,
  setRouting,
  signalMsi,
  takeAck,
  takeHostWork,
  x2apicApi,
} from './irq'
export { ioeventAdd, ioeventNotify, ioeventRemove, ioeventTake } from './ioevent'
export { cpuidAnswer, cpuidEax, cpuidEbx, cpuidEcx, cpuidEdx } from './cpuid'
export { lapicGet, lapicSet } from './lapic'
export { queueNmi } from './lapic-delivery'
export { queueSmi, smmChanged } from './smm'
export { clockStale, masterClock, masterUpdate } from './pv'
export { ioapicGet, ioapicSet } from './ioapic'
export { picGet, picSet } from './pic'
export { pitGet, pitSet, pitSetReinject } from './pit'
export { vmsaBuild, vmsaHostRead, vmsaHostWrite, vmsaMove, vmsaSeal } from './vmsa'
export { msrFilterBegin, msrFilterFree, msrFilterRange } from './msr-exit'
export { zoneAdd, zoneRemove } from './coalesced'
