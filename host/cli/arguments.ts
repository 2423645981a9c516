/** Options of a command as a table: parsing, checking and `--help` come from the same rows. */
import { parseArgs } from 'node:util'
import { usage } from './errors.ts'

export interface Option {
  name: string
  /** Name of the value in the help; absent for a switch. */
  value?: string
  help: string
  /** Not implemented yet: using it is refused by this sentence. */
  toCome?: string
}

export interface Command {
  name: string
  summary: string
  /** Positional arguments as the help shows them. */
  positionals?: string
  maxPositionals?: number
  options: readonly Option[]
  /** Paragraphs below the options. */
  notes?: string
  run(values: Values): Promise<number> | number
}

export interface Values {
  positionals: string[]
  has(name: string): boolean
  text(name: string): string | undefined
}

/** Edit distance, for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1] ? 0 : 1
      next.push(Math.min((row[j - 1] ?? 0) + same, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1))
    }
    row = next
  }
  return row[b.length] ?? 0
}

export function suggestion(word: string, words: readonly string[]): string {
  const near = words.map((w) => ({ w, d: distance(word, w) })).toSorted((a, b) => a.d - b.d)[0]
  return near !== undefined && near.d <= Math.max(2, Math.floor(word.length / 3)) ? ` (did you mean '${near.w}'?)` : ''
}

const shared: readonly Option[] = [{ name: 'help', help: 'show this help' }]

export function parse(command: Command, args: string[]): Values {
  const table = [...command.options, ...shared]
  const known = new Map(table.map((o) => [o.name, o]))
  const options = Object.fromEntries(
    table.map((o) => [o.name, { type: o.value === undefined ? ('boolean' as const) : ('string' as const) }]),
  )
  const { tokens } = parseArgs({ args, options, allowPositionals: true, strict: false, tokens: true })
  const values = new Map<string, string | true>()
  const positionals: string[] = []
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    const option = known.get(token.name)
    if (option === undefined) {
      usage(
        `unknown option '${token.rawName}'${suggestion(
          token.rawName,
          table.map((o) => `--${o.name}`),
        )}`,
      )
    } else if (option.value === undefined) {
      if (token.value !== undefined) usage(`option '--${option.name}' takes no value`)
      values.set(option.name, true)
    } else {
      if (token.value === undefined) usage(`option '--${option.name}' wants a value: ${option.value}`)
      else if (!token.inlineValue && token.value.startsWith('--')) usage(`option '--${option.name}' wants a value: ${option.value}`)
      else values.set(option.name, token.value)
    }
    if (option?.toCome !== undefined) usage(`'--${option.name}' is not there yet: ${option.toCome}`)
  }
  const most = command.maxPositionals ?? 0
  if (positionals.length > most) usage(`unexpected argument '${positionals[most]}'`)
  return {
    positionals,
    has: (name) => values.has(name),
    text: (name) => {
      const value = values.get(name)
      return typeof value === 'string' ? value : undefined
    },
  }
}

/** `one of` check with the list in the message. */
export function choice<T extends string>(name: string, value: string | undefined, of: readonly T[], fallback: T): T {
  if (value === undefined) return fallback
  const found = of.find((v) => v === value)
  return found ?? usage(`--${name}: unknown value '${value}'${suggestion(value, of)}; one of ${of.join(', ')}`)
}

/** A count: decimal digits, or 0x and hexadecimal ones. */
export function count(name: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined
  const n = /^(?:0x[0-9a-f]+|\d+(?:e\d+)?)$/i.test(value) ? Number(value) : Number.NaN
  return Number.isSafeInteger(n) ? n : usage(`--${name}: '${value}' is not a whole number`)
}

/** A count of up to 64 bits. */
export function whole(name: string, value: string | undefined): bigint | undefined {
  if (value === undefined) return undefined
  const n = /^(?:0x[0-9a-f]+|\d+)$/i.test(value) ? BigInt(value) : -1n
  return n >= 0n && n >> 64n === 0n ? n : usage(`--${name}: '${value}' is not a whole number of at most 64 bits`)
}

/** Bytes with an optional suffix K, M, G or T (powers of 1024). */
export function size(name: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined
  const m = /^(0x[0-9a-f]+|\d+)([KMGT]?)(?:i?B)?$/i.exec(value)
  if (m === null) return usage(`--${name}: '${value}' is not a size; write for example 256M or 1G`)
  const power = ['', 'K', 'M', 'G', 'T'].indexOf((m[2] ?? '').toUpperCase())
  const n = Number(m[1]) * 1024 ** power
  return Number.isSafeInteger(n) ? n : usage(`--${name}: '${value}' is too large`)
}

/** Hexadecimal with or without 0x. */
export function hex(name: string, value: string | undefined): bigint | undefined {
  if (value === undefined) return undefined
  const m = /^(?:0x)?([0-9a-f]+)$/i.exec(value)
  if (m === null) return usage(`--${name}: '${value}' is not a hexadecimal number`)
  const n = BigInt(`0x${m[1]}`)
  return n >> 64n === 0n ? n : usage(`--${name}: '${value}' has more than 64 bits`)
}

/** An address: 0x and hexadecimal digits, or decimal ones. */
export function address(name: string, value: string | undefined): bigint | undefined {
  if (value === undefined) return undefined
  return /^(?:0x[0-9a-f]{1,16}|\d{1,19})$/i.test(value)
    ? BigInt(value)
    : usage(`--${name}: '${value}' is not an address; write for example 0x100000`)
}

export function seconds(name: string, value: string | undefined): number | undefined {
  if (value === undefined) return undefined
  const n = /^\d+(?:\.\d+)?$/.test(value) ? Number(value) : Number.NaN
  return n > 0 ? n : usage(`--${name}: '${value}' is not a positive number of seconds`)
}
