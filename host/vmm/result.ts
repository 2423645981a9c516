/** How a run's outcome is told: exit status (contract, "Command line") and report. */
import { type Checked, isSevEs, type RunReport, type RunResult } from './options.ts'
import type { Outcome, RunLoop } from './run-loop.ts'

const STATUS: Readonly<Record<Outcome['reason'], number>> = {
  'powered-off': 0,
  halted: 0,
  'debug-exit': 1,
  'budget-instructions': 124,
  'budget-time': 124,
  'guest-terminated': 126,
  'triple-fault': 126,
  unimplemented: 120,
  interrupted: 130,
  'internal-error': 120,
}

export interface Run {
  readonly options: Checked
  readonly loop: RunLoop
  readonly seconds: number
  readonly ghcb: () => Record<string, number>
  readonly launchDigest: string | null
}

export function resultOf({ reason, detail, debugExit }: Outcome, { options, loop, seconds, ghcb, launchDigest }: Run): RunResult {
  const { type, smp } = options
  const report: RunReport = {
    schema: 1,
    type,
    exit: { reason, detail },
    instructions: loop.instructions,
    seconds,
    exits: loop.counts,
    ghcb: isSevEs(type) ? ghcb() : null,
    tdvmcall: null,
    launchDigest,
    vcpus: smp,
  }
  const status = reason === 'debug-exit' ? (((debugExit ?? 0) << 1) | 1) & 0xff : STATUS[reason]
  return { reason, detail, status, debugExit, report }
}
