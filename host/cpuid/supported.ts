/** CPU models. */
import type { CpuidEntry } from './entries.js'
import type { Host } from '../kvm/kernel.js'
export class CpuModels {
  readonly host: Host
  constructor(host: Host) {
    this.host = host
  }
  supported(): CpuidEntry[] {
    return []
  }
}
