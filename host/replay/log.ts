/**
 * Reads logs of `strace -f -e trace=ioctl,openat,mmap` (strace 4.26 to 6.x): process ids, timestamps (-t, -r, -i), `-y` decorations,
 * unfinished and resumed calls, decoded, raw (`0xae01`) and `_IOC(...)` requests, structs in braces.
 */
import { REQUEST } from '../generated/kvm-abi.ts'

/** An argument as strace shows it: a number, a string, a struct, a list, or words (flags, names). */
export type Value = number | bigint | string | Struct | readonly Value[]

export interface Struct {
  readonly fields: ReadonlyMap<string, Value>
  /** strace left something out (`...`). */
  readonly partial: boolean
}

export interface LoggedCall {
  /** 1-based line of the log where the call began. */
  readonly line: number
  readonly pid: number
  readonly name: 'ioctl' | 'openat' | 'mmap'
  readonly args: readonly Value[]
  /** Result, null if the log does not tell (`= ?`, cut off). */
  readonly result: bigint | null
  /** Errno name of a failed call. */
  readonly errno: string | null
  /** Exit reason that `strace -e kvm=vcpu` prints behind the result. */
  readonly note: string
}

export function isStruct(value: Value | undefined): value is Struct {
  return typeof value === 'object' && 'fields' in value
}

const PREFIX =
  /^(?:\[pid\s+(\d+)\]\s+|(\d+)\s+)?(?:(?:(?:\d{4}-\d{2}-\d{2}T)?\d{2}:\d{2}:\d{2}(?:\.\d+)?(?:[+-]\d{4})?|\d+\.\d{3,}|\d{9,})\s+)?(?:\(\+\s*[\d.]+\)\s+|\d+\.\d{6}\s+)?(?:\[(?:[0-9a-f]{8,16}|\s*\d+|\?+)\]\s+)*/
const RESUMED = /^<\.\.\.\s+(\w+)\s+resumed>\s*,?\s*(.*)$/
const UNFINISHED = /,?\s*<unfinished \.\.\.>\s*$/
const RESULT = /^\s*=\s*(\?|-?\d+|0x[0-9a-f]+)(?:<[^>]*>)?(?:\s+(E[A-Z0-9]+)\b[^(]*)?(?:\s*\(([^)]*)\))?/

/** All calls of the log in the order in which they returned. */
export function parseLog(text: string): LoggedCall[] {
  const calls: LoggedCall[] = []
  const open = new Map<number, { line: number; text: string }>()
  text.split(/\r?\n/).forEach((raw, i) => {
    const prefix = PREFIX.exec(raw)
    const pid = Number(prefix?.[1] ?? prefix?.[2] ?? 0)
    let body = raw.slice(prefix?.[0].length ?? 0)
    let line = i + 1
    const resumed = RESUMED.exec(body)
    if (resumed !== null) {
      const begun = open.get(pid)
      open.delete(pid)
      if (begun === undefined) return
      const rest = resumed[2] ?? ''
      const glue = /[(,]\s*$/.test(begun.text) || rest.startsWith(')') ? '' : ', '
      body = begun.text + glue + rest
      line = begun.line
    } else if (UNFINISHED.test(body)) {
      open.set(pid, { line, text: body.replace(UNFINISHED, '') })
      return
    }
    const call = parseCall(body, pid, line)
    if (call !== null) calls.push(call)
  })
  return calls
}

function parseCall(body: string, pid: number, line: number): LoggedCall | null {
  const name = /^(ioctl|openat|open|mmap)\(/.exec(body)?.[1]
  if (name === undefined) return null
  const reader = new Reader(body, name.length + 1)
  const args = reader.list(')')
  const result = RESULT.exec(body.slice(reader.at))
  const plain = name === 'open' ? 'openat' : (name as LoggedCall['name'])
  const number = result === null || result[1] === '?' ? null : BigInt(result[1] as string)
  return {
    line,
    pid,
    name: plain,
    args: name === 'open' ? [0, ...args] : args,
    result: number,
    errno: number !== null && number < 0n ? (result?.[2] ?? 'E?') : null,
    note: result?.[3] ?? '',
  }
}

/** Recursive descent over strace's notation; never fails: what it does not understand stays text. */
class Reader {
  readonly #text: string
  at: number
  constructor(text: string, at: number) {
    this.#text = text
    this.at = at
  }

  #space(): void {
    while (this.#text[this.at] === ' ') this.at++
  }

  /** Values up to `end`, which is consumed. */
  list(end: string): Value[] {
    const values: Value[] = []
    for (;;) {
      this.#space()
      const c = this.#text[this.at]
      if (c === undefined) return values
      if (c === end) {
        this.at++
        return values
      }
      if (c === ',') this.at++
      else values.push(this.#value(end))
    }
  }

  #value(end: string): Value {
    const c = this.#text[this.at]
    if (c === '{') return this.#struct()
    if (c === '[') {
      this.at++
      return this.list(']')
    }
    if (c === '"') return this.#string()
    return this.#word(end)
  }

  #struct(): Struct {
    this.at++
    const fields = new Map<string, Value>()
    let partial = false
    for (;;) {
      this.#space()
      const c = this.#text[this.at]
      if (c === undefined) return { fields, partial: true }
      if (c === '}') {
        this.at++
        return { fields, partial }
      }
      if (c === ',') {
        this.at++
        continue
      }
      const name = /^(\w+)=/.exec(this.#text.slice(this.at, this.at + 80))?.[1]
      if (name === undefined) {
        const word = this.#value('}')
        if (word === '...') partial = true
        else fields.set(String(fields.size), word)
        continue
      }
      this.at += name.length + 1
      fields.set(name, this.#value('}'))
    }
  }

  #string(): string {
    let out = ''
    for (this.at++; this.at < this.#text.length && this.#text[this.at] !== '"'; this.at++) {
      if (this.#text[this.at] === '\\') this.at++
      out += this.#text[this.at] ?? ''
    }
    this.at++
    return out
  }

  /** A number, flags, a name, `_IOC(...)`, `3</dev/kvm>`, `{...} => {...}`. */
  #word(end: string): Value {
    const start = this.at
    let depth = 0
    for (; this.at < this.#text.length; this.at++) {
      const c = this.#text[this.at] as string
      if (depth === 0 && (c === ',' || c === end || c === '}' || c === ']' || c === ')')) break
      if (c === '(' || c === '<') depth++
      if (c === ')' || c === '>') depth = Math.max(0, depth - 1)
    }
    if (this.at === start) this.at++
    return numberOf(this.#text.slice(start, this.at).trim())
  }
}

/** `8<anon_inode:kvm-vm>` is 8, `0x10` is 16; anything else stays a word. */
function numberOf(word: string): Value {
  const m = /^(-?(?:0x[0-9a-f]+|\d+))(?:<.*>)?(?:\s*\/\*.*\*\/)?$/i.exec(word)
  if (m === null) return word
  const text = m[1] as string
  const big = text.startsWith('-') ? -BigInt(text.slice(1)) : BigInt(text)
  return big >= -0x80000000n && big <= 0xffffffffn ? Number(big) : big
}

const NAMES: ReadonlyMap<number, string> = new Map(Object.entries(REQUEST).map(([name, code]) => [code, name]))
const DIRECTION: Readonly<Record<string, number>> = { _IOC_NONE: 0, _IOC_WRITE: 1, _IOC_READ: 2 }

/** A request in any notation: its code (null if unknown) and name. */
export function requestOf(value: Value | undefined): { code: number | null; name: string } {
  if (typeof value === 'number' || typeof value === 'bigint') {
    const code = Number(value) >>> 0
    return { code, name: NAMES.get(code) ?? `0x${code.toString(16)}` }
  }
  if (typeof value !== 'string') return { code: null, name: '?' }
  // strace lists every name that shares a code: "A or B".
  for (const name of value.split(' or ')) {
    const code: number | undefined = (REQUEST as Readonly<Record<string, number>>)[name.trim()]
    if (code !== undefined) return { code, name: name.trim() }
  }
  const ioc = /^_IO([CRW]*)\((.*)\)$/.exec(value)
  if (ioc !== null) {
    const parts = (ioc[2] as string).split(',').map((p) => p.trim())
    const number = (text: string | undefined): number => {
      const n = Number(text)
      return Number.isNaN(n) ? 0 : n
    }
    const direction = (parts[0] ?? '').split('|').reduce((bits, d) => bits | (DIRECTION[d] ?? 0), 0)
    const code =
      ioc[1] === 'C'
        ? ((direction << 30) | (number(parts[3]) << 16) | (number(parts[1]) << 8) | number(parts[2])) >>> 0
        : ((number(parts[0]) << 8) | number(parts[1])) >>> 0
    return { code, name: NAMES.get(code) ?? value }
  }
  return { code: null, name: value }
}
