/** The machine as the command line uses it; bound at run time until the VMM room exports its class. */
import * as vmm from '../vmm/index.ts'
import type { MachineOptions, RunResult } from '../vmm/index.ts'

export interface LaunchStep {
  address: string
  kind: string
  source: string
  digest: string
}

interface MachineLike {
  launch(): Promise<void> | void
  run(options: { signal?: AbortSignal }): Promise<RunResult>
  serialInput(bytes: Uint8Array): void
  readonly launchDigest: string | null
  readonly launchSteps: readonly LaunchStep[]
  [Symbol.dispose](): void
}

export const Machine = (vmm as unknown as { Machine: { create(options: MachineOptions): Promise<MachineLike> } }).Machine
