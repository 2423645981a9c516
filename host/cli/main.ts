/** Finds the command, runs it, and turns every ending into an exit status. */
import { CloisterError } from '../errors.ts'
import { version } from '../index.ts'
import { type Command, parse, suggestion, type Values } from './arguments.ts'
import { demo } from './demo.ts'
import { STATUS, UsageError, usage } from './errors.ts'
import { commandHelp, generalHelp } from './help.ts'
import { measure } from './measure.ts'
import { complain, drain, guardPipes, print } from './output.ts'
import { policy } from './policy.ts'
import { replay } from './replay.ts'
import { run } from './run.ts'

const commands: readonly Command[] = [run, measure, policy, replay, demo]

/** Commands of the contract that are not implemented yet. */
const toCome: Readonly<Record<string, string>> = {
  cpuid: 'CPUID bits of a TDX module: fixed, configurable, checked',
  attest: 'attestation reports and quotes: show, verify',
  fuzz: 'run a fuzzing harness',
}

function find(name: string): Command {
  if (Object.hasOwn(toCome, name)) usage(`command '${name}' is not there yet (${toCome[name]})`)
  const names = commands.map((c) => c.name)
  const what = name.startsWith('-') ? 'option' : 'command'
  return commands.find((c) => c.name === name) ?? usage(`unknown ${what} '${name}'${suggestion(name, names)}; see 'cloister --help'`)
}

async function dispatch(args: string[]): Promise<number> {
  const [name, ...rest] = args
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    const asked = rest[0] === undefined || rest[0].startsWith('-') ? undefined : find(rest[0])
    print(asked === undefined ? generalHelp(commands, toCome) : commandHelp(asked))
    return name === undefined ? STATUS.usage : STATUS.ok
  }
  if (name === '--version' || name === '-V') {
    print(`${version}\n`)
    return STATUS.ok
  }
  const command = find(name)
  if (rest.includes('--help') || rest.includes('-h')) {
    print(commandHelp(command))
    return STATUS.ok
  }
  const values = parse(command, rest)
  try {
    return await command.run(values)
  } catch (error) {
    throw named(error, values)
  }
}

/** What the library says of a file's bytes, said of the file: its code is the option's name. */
function named(error: unknown, values: Values): unknown {
  if (!(error instanceof CloisterError)) return error
  const { code, message } = error
  const given = ['kernel', 'initrd', 'firmware', 'image', 'append'].includes(code) && values.has(code) ? values.text(code) : undefined
  if (given === undefined || !message.startsWith(`${code}: `)) return error
  return new UsageError(`--${code}${code === 'append' ? '' : ` ${given}`}${message.slice(code.length)}`)
}

/** Bad input is told in one line; anything else that escapes is our own bug and shows where it came from. */
function explain(error: unknown): number {
  if (error instanceof UsageError || error instanceof CloisterError) {
    complain(error.message.split('\n')[0] ?? '')
    return STATUS.usage
  }
  complain(`internal error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`)
  return STATUS.stopped
}

export async function main(args: string[]): Promise<never> {
  guardPipes()
  let status: number
  try {
    status = await dispatch(args)
  } catch (error) {
    status = explain(error)
  }
  await drain()
  process.exit(status)
}
