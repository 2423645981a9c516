/** Exports of the kernel's fast paths. */
export { pollEvents } from './events'
export { cpuGetFlags, cpuModeChanged, cpuSetFlags } from './registers'
