/** What `--help` prints, made from the command tables. */
import type { Command } from './arguments.ts'

const width = 30

function row(left: string, right: string): string {
  return left.length < width - 3 ? `  ${left.padEnd(width - 2)}${right}\n` : `  ${left}\n${' '.repeat(width)}${right}\n`
}

export function generalHelp(commands: readonly Command[], toCome: Readonly<Record<string, string>>): string {
  let text = 'cloister: confidential virtual machines and the KVM interface that runs them, emulated\n\n'
  text += 'usage: cloister COMMAND [OPTION…]\n\ncommands:\n'
  for (const command of commands) text += row(command.name, command.summary)
  text += '\nto come:\n'
  for (const [name, what] of Object.entries(toCome)) text += row(name, what)
  text += "\n'cloister COMMAND --help' shows its options; 'cloister --version' the version.\n"
  return text
}

export function commandHelp(command: Command): string {
  const positionals = command.positionals ? ` ${command.positionals}` : ''
  let text = `usage: cloister ${command.name}${positionals} [OPTION…]\n\n${command.summary}\n`
  const here = command.options.filter((o) => o.toCome === undefined)
  if (here.length > 0) text += '\noptions:\n'
  for (const o of here) text += row(`--${o.name}${o.value === undefined ? '' : ` ${o.value}`}`, o.help)
  const later = command.options.filter((o) => o.toCome !== undefined)
  if (later.length > 0) text += '\nnot there yet (refused with status 122):\n'
  for (const o of later) text += row(`--${o.name}${o.value === undefined ? '' : ` ${o.value}`}`, o.help)
  if (command.notes !== undefined) text += `\n${command.notes.trim()}\n`
  return text
}
