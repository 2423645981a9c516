/** The physical CPU: wild.c runs batches through it. */
import { NativeServer, SIGNAL_FLAGS } from '../../support/native-program.ts'
import { CODE_BYTES, FX_SIZE, IN_SIZE, LDT_ENTRIES, OUT_SIZE, WRITABLE } from './place.ts'
import type { Batch, Descriptor, Outcome } from './place.ts'

/** struct user_desc of modify_ldt(2); an empty one clears the entry. */
function userDescriptor(to: Buffer, at: number, entry: number, d: Descriptor | null): void {
  to.writeUInt32LE(entry, at)
  if (!d) {
    // read_exec_only and seg_not_present with base and limit 0: LDT_empty()
    to.writeUInt32LE((1 << 3) | (1 << 5), at + 12)
    return
  }
  const granular = (d.attrib & 0x800) !== 0
  to.writeUInt32LE(d.base >>> 0, at + 4)
  to.writeUInt32LE(granular ? d.limit >>> 12 : d.limit, at + 8)
  const big = (d.attrib >> 10) & 1
  const contents = (d.attrib >> 2) & 3
  const readOnly = ((d.attrib >> 1) & 1) ^ 1
  const absent = ((d.attrib >> 7) & 1) ^ 1
  const available = (d.attrib >> 8) & 1
  to.writeUInt32LE(big | (contents << 1) | (readOnly << 3) | (Number(granular) << 4) | (absent << 5) | (available << 6), at + 12)
}

export class Native {
  private readonly helper = new NativeServer('oracle/wild/wild.c', [...SIGNAL_FLAGS, '-mfsgsbase'])

  async run(batch: Batch): Promise<Outcome[]> {
    const { states, ldt, data } = batch
    const request = Buffer.alloc(8 + LDT_ENTRIES * 16 + WRITABLE + states.length * IN_SIZE)
    request.writeUInt32LE(states.length, 0)
    request.writeUInt32LE(LDT_ENTRIES, 4)
    for (let i = 0; i < LDT_ENTRIES; i++) userDescriptor(request, 8 + i * 16, i, ldt[i] ?? null)
    let at = 8 + LDT_ENTRIES * 16
    request.set(data, at)
    at += WRITABLE
    for (const c of states) {
      request.set(c.code, at)
      let to = at + CODE_BYTES
      request.writeUInt32LE(c.slot, to)
      c.segment.forEach((s, i) => request.writeUInt16LE(s, to + 4 + i * 2))
      request.writeUInt32LE(c.code.length, to + 16)
      request.writeUInt32LE(c.free ? 1 : 0, to + 20)
      to += 32
      request.writeBigUInt64LE(c.rip, to)
      request.set(new Uint8Array(c.gpr.buffer), to + 8)
      request.writeBigUInt64LE(c.rflags, to + 136)
      request.writeBigUInt64LE(c.base[0], to + 144)
      request.writeBigUInt64LE(c.base[1], to + 152)
      request.set(c.fx, to + 160)
      at += IN_SIZE
    }
    this.helper.send(request)
    const reply = await this.helper.take(Number((await this.helper.take(8)).readBigUInt64LE(0)))
    at = 0
    return states.map(() => {
      const gpr = new BigUint64Array(16)
      for (let i = 0; i < 16; i++) gpr[i] = reply.readBigUInt64LE(at + 24 + i * 8)
      const first = reply.readUInt16LE(at + 188)
      const last = reply.readUInt16LE(at + 190)
      const o: Outcome = {
        vector: reply.readUInt32LE(at),
        error: reply.readUInt32LE(at + 4),
        cr2: reply.readBigUInt64LE(at + 8),
        rip: reply.readBigUInt64LE(at + 16),
        gpr,
        rflags: reply.readBigUInt64LE(at + 152),
        base: [reply.readBigUInt64LE(at + 160), reply.readBigUInt64LE(at + 168)],
        segment: [0, 1, 2, 3, 4, 5].map((i) => reply.readUInt16LE(at + 176 + i * 2)),
        fx: new Uint8Array(reply.subarray(at + 192, at + 192 + FX_SIZE)),
        first,
        data: new Uint8Array(reply.subarray(at + OUT_SIZE, at + OUT_SIZE + last - first)),
      }
      at += OUT_SIZE + last - first
      return o
    })
  }

  close(): void {
    this.helper.close()
  }
}
