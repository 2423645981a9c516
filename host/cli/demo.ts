/** `cloister demo`: the sample guests, one per VM type that works, and what their host can and cannot see. */
import { inflateRawSync } from 'node:zlib'
import { guests } from '../generated/guests.ts'
import { type Kvm, openKvm } from '../index.ts'
import type { Command } from './arguments.ts'
import { Guest, type GuestType, guestTypes, type Image } from './demo/guest.ts'
import { glimpse, Narrator } from './demo/narrator.ts'
import { STATUS } from './errors.ts'
import { json, print, toHex } from './output.ts'

const MAX_EXITS = 100_000
const pageUp = (n: number): number => Math.ceil(n / 4096) * 4096

function image(name: keyof typeof guests, load: number): Image {
  return { bytes: new Uint8Array(inflateRawSync(Buffer.from(guests[name], 'base64'))), load }
}

interface Row {
  type: string
  exits: number
  /** Launch digest in hexadecimal; null for an ordinary guest. */
  digest: string | null
  registers: string
  memory: string
  end: string
  ok: boolean
}

const find = (haystack: Uint8Array, needle: string): number => Buffer.from(haystack).indexOf(needle)

/** One guest from creation to its last exit. */
function tell(kvm: Kvm, type: GuestType, silent: boolean): Row {
  const say = new Narrator(silent)
  say.title(`${type.name}: ${type.protectedState ? 'SEV-ES guest with its own #VC handler' : 'flat 64-bit guest'}`)
  const guest = new Guest(kvm, type, say)
  try {
    const sample = type.protectedState ? image('sev-es', 0x200000) : image('flat', 0x100000)
    const secret = sample.load + find(sample.bytes, type.protectedState ? 'PRIVATE' : 'Hello')
    let digest = ''
    guest.prepare(sample)
    say.fact('memory', `host reads ${glimpse(guest.memory.read(secret, 24))} at 0x${secret.toString(16)}`)
    say.fact('regs', `host reads ${guest.readRegisters()}`)
    if (type.encrypted) {
      guest.launchStart()
      guest.launchUpdateTables()
      guest.launchUpdate(sample.load, pageUp(sample.bytes.length))
      say.fact('memory', `after LAUNCH_UPDATE_DATA: ${glimpse(guest.memory.read(secret, 24))}`)
      if (type.protectedState) {
        guest.launchUpdateVmsa()
        say.fact('regs', `after LAUNCH_UPDATE_VMSA: ${guest.readRegisters()}`)
      }
      const measure = guest.launchMeasure()
      guest.launchFinish()
      digest = toHex(guest.launchDigest())
      say.fact('digest', digest)
      say.fact('measure', `${toHex(measure.subarray(0, 32))} (HMAC), nonce ${toHex(measure.subarray(32))}`)
    }
    let halts = 0
    let end = 'still running'
    for (let i = 0; i < MAX_EXITS; i++) {
      const exit = guest.step()
      say.exit(exit)
      end = exit.name
      if (exit.name === 'KVM_EXIT_HLT') {
        say.fact('regs', `at the halt: ${guest.readRegisters()}`)
        say.fact('memory', `at the halt: ${glimpse(guest.memory.read(secret, 24))}`)
        // The SEV-ES sample asks for its own termination when it is resumed; the flat one only halts again.
        if (!type.protectedState || halts++ > 0) break
      }
      if (exit.last) break
    }
    say.flushExits()
    const registers = guest.readRegisters()
    const readable = find(guest.memory.read(secret, 24), type.protectedState ? 'PRIVATE' : 'Hello') === 0
    const expected = type.protectedState ? 'KVM_EXIT_SYSTEM_EVENT' : 'KVM_EXIT_HLT'
    return {
      type: type.name,
      exits: say.exits,
      digest: digest === '' ? null : digest,
      registers: registers.startsWith('errno')
        ? registers
        : registers.includes('r12=0x5ec2e7')
          ? 'SECRET SEEN'
          : type.protectedState
            ? 'old GHCB values'
            : 'readable',
      memory: readable ? 'plaintext' : 'ciphertext',
      end,
      ok: end === expected && readable === !type.encrypted && !registers.includes('r12=0x5ec2e7'),
    }
  } finally {
    guest.close()
  }
}

function table(rows: string[][]): string {
  const widths = (rows[0] ?? []).map((_, i) => Math.max(...rows.map((r) => r[i]?.length ?? 0)))
  return rows
    .map(
      (r) =>
        `   ${r
          .map((cell, i) => cell.padEnd(widths[i] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('')
}

export const demo: Command = {
  name: 'demo',
  summary: 'Run the embedded sample guests: their exits, their launch, what the host can read.',
  options: [{ name: 'json', help: 'the closing table alone, as JSON' }],
  run: async (values) => {
    const asJson = values.has('json')
    const rows: Row[] = []
    for (const type of guestTypes) {
      using kvm = await openKvm({ host: 'amd' })
      rows.push(tell(kvm, type, asJson))
    }
    if (asJson) print(json({ schema: 1, guests: rows, toCome: ['snp', 'tdx'] }))
    else
      print(
        `\n${table([
          ['type', 'exits', 'launch digest', 'host reads registers', 'host reads memory', 'last exit', ''],
          ...rows.map((r) => [
            r.type,
            String(r.exits),
            r.digest === null ? 'not measured' : `${r.digest.slice(0, 16)}…`,
            r.registers,
            r.memory,
            r.end,
            r.ok ? 'ok' : 'NOT AS EXPECTED',
          ]),
          ['snp', '', '', '', '', 'to come'],
          ['tdx', '', '', '', '', 'to come'],
        ])}`,
      )
    return rows.every((r) => r.ok) ? STATUS.ok : STATUS.no
  },
}
