/** `cloister run`: boots one guest; its serial console is stdin and stdout. */
import { closeSync, openSync, writeSync } from 'node:fs'
import { Machine, type MachineOptions, type RunResult, type TraceKind, traceKindNames } from '../vmm/index.ts'
import { choice, type Command, count, seconds, suggestion, type Values, whole } from './arguments.ts'
import { openConsole } from './console.ts'
import { STATUS, usage } from './errors.ts'
import { writeOutput, writing } from './files.ts'
import { guestOptions, imageOptions, readGuestOptions, readImageOptions, readSizes } from './machine-options.ts'
import { complain, json, onClosedPipe } from './output.ts'

export const run: Command = {
  name: 'run',
  summary: 'Boot one guest; its serial console is stdin and stdout (Ctrl-A X leaves).',
  options: [
    ...guestOptions,
    ...imageOptions,
    { name: 'memory', value: 'SIZE', help: 'RAM (default 256M)' },
    { name: 'smp', value: 'N', help: 'vCPUs (default 1)' },
    { name: 'cpu', value: 'MODEL', help: 'CPU model of docs/cpu-models.md, then ,+FEATURE or ,-FEATURE (default: default)' },
    { name: 'max-instructions', value: 'N', help: 'stop after N instructions of all vCPUs (status 124)' },
    { name: 'timeout', value: 'SECONDS', help: 'stop after that wall-clock time (status 124)' },
    { name: 'report', value: 'FILE', help: 'write a JSON report' },
    { name: 'trace', value: 'KINDS', help: `one line per event: ${traceKindNames.join(', ')} (comma-separated; tdcall comes with TDX)` },
    { name: 'trace-file', value: 'FILE', help: 'trace into a file instead of stderr' },
    { name: 'seed', value: 'N', help: 'seed of every random number (default 0)' },
    { name: 'jit', value: 'on|off', help: 'without effect: there is no JIT yet, both interpret' },
    {
      name: 'firmware-less',
      help: 'launch a kernel without firmware',
      toCome: 'a confidential guest boots its kernel through firmware in this version',
    },
    { name: 'real-time', help: 'tie virtual time to the wall clock', toCome: 'virtual time is the instruction count in this version' },
  ],
  notes: `
exit status: 0 powered off, reset or halted for good; odd: debug-exit, (value << 1) | 1; 120 the emulator stopped
(unimplemented or internal); 122 bad usage or input; 124 a budget ran out; 126 the guest failed (triple fault,
terminated itself); 130 interrupted.`,
  run: runGuest,
}

function openTrace(values: Values): Pick<MachineOptions, 'trace' | 'traceKinds'> & { close(): void } {
  const kinds = values.text('trace')
  const path = values.text('trace-file')
  if (kinds === undefined) {
    if (path !== undefined) usage('--trace-file wants --trace KINDS')
    return { close: () => {} }
  }
  const traceKinds = kinds.split(',').map((kind): TraceKind => {
    const found = traceKindNames.find((k) => k === kind)
    return found ?? usage(`--trace: unknown kind '${kind}'${suggestion(kind, traceKindNames)}; any of ${traceKindNames.join(', ')}`)
  })
  if (path === undefined) return { traceKinds, trace: (line) => void process.stderr.write(`${line}\n`), close: () => {} }
  writeOutput('--trace-file', path, '')
  const file = openSync(path, 'a')
  let buffer: string[] = []
  const flush = () => {
    const text = `${buffer.join('\n')}\n`
    const any = buffer.length > 0
    buffer = []
    if (any) writing('--trace-file', path, () => void writeSync(file, text))
  }
  const trace = (line: string) => {
    if (buffer.push(line) >= 256) flush()
  }
  const close = () => {
    flush()
    closeSync(file)
  }
  return { traceKinds, trace, close }
}

/** What stderr says about an ending that is not a plain one. */
function verdict(result: RunResult): string | null {
  const detail = result.detail === null ? '' : `: ${result.detail}`
  switch (result.status) {
    case STATUS.stopped:
      return `the emulator stopped (${result.reason})${detail}`
    case STATUS.budget:
      return `the budget ran out (${result.reason})${detail}`
    case STATUS.guestFailed:
      return `the guest failed (${result.reason})${detail}`
    case STATUS.interrupted:
      return 'interrupted'
    default:
      // Status 0 says only that the guest is through; that it wanted to go on is worth a word.
      return result.reason === 'powered-off' && result.detail?.startsWith('reset') ? `${result.detail}: a reset ends the run` : null
  }
}

async function runGuest(values: Values): Promise<number> {
  const options: MachineOptions = { ...readGuestOptions(values), ...readImageOptions(values), ...readSizes(values) }
  const maxInstructions = count('max-instructions', values.text('max-instructions'))
  const timeoutSeconds = seconds('timeout', values.text('timeout'))
  const seed = whole('seed', values.text('seed'))
  if (maxInstructions !== undefined) options.maxInstructions = maxInstructions
  if (timeoutSeconds !== undefined) options.timeoutSeconds = timeoutSeconds
  if (seed !== undefined) options.seed = seed
  choice('jit', values.text('jit'), ['on', 'off'] as const, 'on')
  const reportPath = values.text('report')
  // Told before the run, not after it.
  if (reportPath !== undefined) writeOutput('--report', reportPath, '')
  const trace = openTrace(values)
  if (trace.trace !== undefined) options.trace = trace.trace
  if (trace.traceKinds !== undefined) options.traceKinds = trace.traceKinds

  const abort = new AbortController()
  const interrupt = () => {
    if (abort.signal.aborted) process.exit(STATUS.interrupted)
    abort.abort()
  }
  process.on('SIGINT', interrupt)
  process.on('SIGTERM', interrupt)
  // Somebody sits there: a countdown of five seconds shall last five seconds.
  if (process.stdin.isTTY && process.stdout.isTTY) options.pace = true
  options.onSerial = (bytes) => terminal.output(bytes)
  const machine = await Machine.create(options)
  const terminal = openConsole(
    (bytes) => machine.serialInput(bytes),
    () => machine.closeInput(),
    () => abort.abort(),
  )
  let quiet = false
  onClosedPipe(() => {
    quiet = true
    abort.abort()
  })
  try {
    machine.launch()
    const result = await machine.run({ signal: abort.signal })
    if (reportPath !== undefined) writeOutput('--report', reportPath, json(result.report))
    const line = verdict(result)
    if (line !== null && !quiet) complain(line)
    return result.status
  } finally {
    terminal.close()
    trace.close()
    machine[Symbol.dispose]()
  }
}
