/**
 * Random sequences of an ordinary VM, each from a valid beginning (irqchip or not, slots, vCPUs) and drawn from a seed: slots,
 * irqchip state, routing, event file descriptors, dirty log, registers, events, MP states, CPUID, MSRs, XSAVE, local APIC,
 * PIT, clock, translation, capabilities, and runs of a few instructions.
 */
import { CAP, type REQUEST } from 'cloister'
import type { Area, Call, Command, Name, Target } from './script.ts'

/** xorshift32. */
class Random {
  #x: number
  constructor(seed: number) {
    this.#x = seed | 0 || 1
  }

  below(n: number): number {
    this.#x ^= this.#x << 13
    this.#x ^= this.#x >>> 17
    this.#x ^= this.#x << 5
    return (this.#x >>> 0) % n
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T
  }

  bytes(n: number): Uint8Array {
    return Uint8Array.from({ length: n }, () => this.below(256))
  }

  /** Values where checks turn: small, powers of two and their neighbours, all ones, noise. */
  word(bits: 8 | 16 | 32 | 64): bigint {
    const kind = this.below(6)
    if (kind < 2) return BigInt(this.below(8))
    if (kind === 2) return BigInt.asUintN(bits, (1n << BigInt(this.below(bits))) - BigInt(this.below(2)))
    if (kind === 3) return (1n << BigInt(bits)) - 1n
    return BigInt.asUintN(bits, (BigInt(this.below(2 ** 31)) << 33n) ^ BigInt(this.below(2 ** 31)))
  }
}

function le(bits: 8 | 16 | 32 | 64, value: bigint | number): Uint8Array {
  const bytes = new Uint8Array(bits / 8)
  let left = BigInt.asUintN(bits, BigInt(value))
  for (let i = 0; i < bytes.length; i++, left >>= 8n) bytes[i] = Number(left & 0xffn)
  return bytes
}

const SIZES: Partial<Record<Name, number>> = { KVM_MEMORY_ENCRYPT_OP: 24 }

interface Parts {
  readonly length?: number
  readonly scalar?: number
  readonly base?: Name
  /** u8, u16, u32, u64 fields or bytes by offset. */
  readonly u8?: Readonly<Record<number, number>>
  readonly u16?: Readonly<Record<number, number>>
  readonly u32?: Readonly<Record<number, number>>
  readonly u64?: Readonly<Record<number, bigint | number>>
  readonly raw?: Readonly<Record<number, Uint8Array>>
  readonly pointers?: Call['pointers']
}

function call(requests: typeof REQUEST, on: Target, name: Name, parts: Parts = {}): Call {
  const code = requests[name]
  const size = SIZES[name] ?? (code >>> 16) & 0x3fff
  const patches: [number, Uint8Array][] = []
  for (const [bits, fields] of [
    [8, parts.u8],
    [16, parts.u16],
    [32, parts.u32],
    [64, parts.u64],
  ] as const)
    for (const [at, value] of Object.entries(fields ?? {})) patches.push([Number(at), le(bits, value)])
  for (const [at, bytes] of Object.entries(parts.raw ?? {})) patches.push([Number(at), bytes])
  const length = parts.length ?? (code >>> 30 === 0 ? -1 : size)
  return { do: 'call', on, name, length, scalar: parts.scalar ?? 0, base: parts.base ?? null, patches, pointers: parts.pointers ?? [] }
}

const write = (area: Area, at: number, bytes: Uint8Array): Command => ({ do: 'write', area, at, bytes })
const read = (area: Area, at: number, length: number): Command => ({ do: 'read', area, at, length })

/** Registers whose values every KVM keeps for an ordinary guest. */
const MSRS = [
  0x10, 0x1b, 0x3b, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x1d9, 0x200, 0x201, 0x20e, 0x20f, 0x210, 0x250, 0x258,
  0x259, 0x268, 0x26f, 0x277, 0x2ff, 0x400, 0x401, 0x402, 0x403, 0x47f, 0x480, 0x6e0, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000083,
  0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103, 0xc0010015, 0xc0010117, 0x4b564d00, 0x4b564d01, 0x12345, 0xc0010058,
] as const
const MSR_VALUES = [0n, 1n, 6n, 0xc06n, 0x800n, 0xfee00900n, 0x0606060606060606n, 0x8000000000000000n, 0xffff800000000000n, 0x7fffffffn]
const CAPS = [
  'KVM_CAP_SPLIT_IRQCHIP',
  'KVM_CAP_EXIT_HYPERCALL',
  'KVM_CAP_X86_USER_SPACE_MSR',
  'KVM_CAP_EXCEPTION_PAYLOAD',
  'KVM_CAP_X86_TRIPLE_FAULT_EVENT',
  'KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2',
  'KVM_CAP_X2APIC_API',
  'KVM_CAP_HALT_POLL',
  'KVM_CAP_MSR_PLATFORM_INFO',
  'KVM_CAP_DISABLE_QUIRKS',
  'KVM_CAP_DISABLE_QUIRKS2',
  'KVM_CAP_X86_DISABLE_EXITS',
  'KVM_CAP_DIRTY_LOG_RING',
  'KVM_CAP_X86_BUS_LOCK_EXIT',
  'KVM_CAP_IRQCHIP',
  'KVM_CAP_VM_COPY_ENC_CONTEXT_FROM',
  'KVM_CAP_MAX_VCPU_ID',
  'KVM_CAP_PIT2',
] as const satisfies readonly (keyof typeof CAP)[]

/** Real-mode programs that end in an exit. */
const PROGRAMS: readonly (readonly number[])[] = [
  [0xe6, 0x10, 0xf4], // out 0x10, al
  [0xe4, 0x20, 0xf4], // in al, 0x20
  [0xed, 0xf4], // in ax, dx
  [0xa2, 0x00, 0x90, 0xf4], // mov [0x9000], al
  [0xa1, 0x00, 0xd0, 0xf4], // mov ax, [0xd000]
  [0xf4],
  [0x40, 0x43, 0x01, 0xd8, 0xf4], // inc ax; inc bx; add ax, bx; hlt
  [0xfa, 0x90, 0xf4], // cli; nop; hlt
]

export class Sequences {
  readonly #r: Random
  readonly #requests: typeof REQUEST
  /** vCPUs of this VM that ran a program. */
  readonly #ran = new Set<number>()

  constructor(seed: number, requests: typeof REQUEST) {
    this.#r = new Random(seed)
    this.#requests = requests
  }

  #call(on: Target, name: Name, parts: Parts = {}): Call {
    return call(this.#requests, on, name, parts)
  }

  /** One VM. */
  next(length: number): Command[] {
    const r = this.#r
    const out: Command[] = [{ do: 'fresh', type: 0 }]
    this.#ran.clear()
    const chip = r.below(3)
    if (chip === 1) out.push(this.#call('v', 'KVM_CREATE_IRQCHIP'))
    if (chip === 2) out.push(this.#call('v', 'KVM_ENABLE_CAP', { u32: { 0: CAP.KVM_CAP_SPLIT_IRQCHIP }, u64: { 8: 24 } }))
    if (chip === 1 && r.below(2)) out.push(this.#call('v', 'KVM_CREATE_PIT2'))
    if (r.below(4)) out.push(this.#slot(0, 0, 0x0, 0x8000, 0))
    const vcpus = r.below(8) ? 1 + r.below(2) : 0
    for (let i = 0; i < vcpus; i++) out.push(this.#call('v', 'KVM_CREATE_VCPU', { scalar: i }))
    if (r.below(2)) for (let i = 0; i < vcpus; i++) out.push(...this.#cpuid(i))
    for (let i = 0; i < length; i++) out.push(...(vcpus > 0 && r.below(3) ? this.#vcpu(r.below(vcpus)) : this.#vm()))
    return out
  }

  #slot(id: number, flags: number, gpa: number, size: number, at: number): Call {
    return this.#call('v', 'KVM_SET_USER_MEMORY_REGION', { u32: { 0: id, 4: flags }, u64: { 8: gpa, 16: size }, pointers: [[24, 'M', at]] })
  }

  #vm(): Command[] {
    const r = this.#r
    switch (r.below(22)) {
      case 0:
      case 1:
      case 2:
        return [
          this.#slot(
            r.pick([0, 1, 2, 3, 0x10000, 32763, 32764, 0x20000]),
            r.pick([0, 0, 0, 1, 2, 3, 4, 8]),
            r.pick([0, 0x8000, 0x9000, 0xa000, 0x100000, 0x800, 2 ** 40]),
            r.pick([0, 0x1000, 0x1000, 0x4000, 0x8000, 0x800]),
            r.pick([0, 0, 0x4000, 0x8000, 0xc000, 0x80]),
          ),
        ]
      case 3:
        return [
          this.#call('v', 'KVM_GET_DIRTY_LOG', { u32: { 0: r.pick([0, 1, 2, 3, 40000]) }, pointers: [[8, 'S', 0]] }),
          read('S', 0, 64),
        ]
      case 4:
        return [
          this.#call('v', 'KVM_CLEAR_DIRTY_LOG', {
            u32: { 0: r.below(3), 4: r.pick([0, 1, 8, 64]) },
            u64: { 8: r.pick([0, 1, 64]) },
            pointers: [[16, 'S', 0x100]],
          }),
        ]
      case 5:
        return [this.#call('v', 'KVM_CREATE_IRQCHIP')]
      case 6:
        return [this.#call('v', 'KVM_CREATE_PIT2', { u32: { 0: r.below(2) } })]
      case 7: {
        const chip = r.below(4)
        const get = this.#call('v', 'KVM_GET_IRQCHIP', { u32: { 0: chip } })
        if (r.below(2)) return [get]
        // A state of the same chip, changed in a byte.
        const at = 8 + r.below(chip === 2 ? 216 : 16)
        return [get, this.#call('v', 'KVM_SET_IRQCHIP', { base: 'KVM_GET_IRQCHIP', u8: { [at]: r.below(256) } }), get]
      }
      case 8: {
        const get = this.#call('v', 'KVM_GET_PIT2')
        if (r.below(2)) return [get]
        return [
          get,
          this.#call('v', 'KVM_SET_PIT2', { base: 'KVM_GET_PIT2', u8: { [r.pick([4, 5, 6, 7, 8, 9, 10, 11, 12])]: r.below(4) } }),
          get,
        ]
      }
      case 9:
        return [
          this.#call('v', r.pick(['KVM_IRQ_LINE', 'KVM_IRQ_LINE_STATUS'] as const), {
            u32: { 0: r.pick([0, 1, 4, 9, 23, 24, 300]), 4: r.below(2) },
          }),
        ]
      case 10:
        return [this.#routing()]
      case 11:
        return [
          this.#call('v', 'KVM_SIGNAL_MSI', {
            u32: {
              0: r.pick([0xfee00000, 0xfee01000, 0xfeeff000, 0]),
              4: r.pick([0, 0, 0x100]),
              8: r.pick([0x31, 0x4031, 0x200, 0]),
              12: r.pick([0, 0, 0, 1, 2]),
            },
          }),
        ]
      case 12: {
        const u32 = { 0: 0xffffffff, 4: r.pick([0, 1, 5, 23, 24, 5000]), 8: r.pick([0, 0, 0, 1, 2, 4]) }
        return [
          this.#call('v', 'KVM_IRQFD', {
            u32,
            pointers: r.below(8)
              ? [
                  [0, 'E', r.below(3)],
                  [12, 'E', 3 + r.below(2)],
                ]
              : [],
          }),
          { do: 'signal', event: r.below(3) },
        ]
      }
      case 13:
        return [
          this.#call('v', 'KVM_IOEVENTFD', {
            u64: { 0: r.below(3), 8: r.pick([0x10, 0x20, 0x9000, 0xd000, 0xffffffffffffffffn]) },
            u32: { 16: r.pick([0, 1, 2, 4, 8, 3]), 24: r.pick([0, 1, 2, 2, 3, 4, 6, 16]) },
            pointers: [[20, 'E', 4 + r.below(3)]],
          }),
        ]
      case 14:
        return [this.#call('v', 'KVM_SET_BOOT_CPU_ID', { scalar: r.pick([0, 1, 255, 4095, 4096, 4097, 100000]) })]
      case 15:
        return [
          this.#call('v', 'KVM_SET_CLOCK', { u64: { 0: r.word(64) & 0xffffffffffn }, u32: { 8: r.pick([0, 0, 0, 2, 4, 1, 16]) } }),
          this.#call('v', 'KVM_GET_CLOCK'),
        ]
      case 16:
        return [this.#call('v', r.pick(['KVM_SET_TSS_ADDR'] as const), { scalar: r.pick([0xfffbd000, 0xffffd000, 0xffffe000, 0]) })]
      case 17:
        return [this.#call('v', 'KVM_SET_IDENTITY_MAP_ADDR', { u64: { 0: r.pick([0, 0xfffbc000, 0xfeffc000]) } })]
      case 18:
      case 19:
        return [
          this.#call('v', 'KVM_ENABLE_CAP', {
            u32: { 0: CAP[r.pick(CAPS)], 4: r.pick([0, 0, 0, 0, 0, 1]) },
            u64: { 8: r.pick([0, 1, 2, 3, 4, 7, 8, 24, 0x1000, 0x2000, 4096, 5000, 0xffffffffffffffffn]) },
          }),
        ]
      case 20:
        return [this.#call('v', 'KVM_CREATE_VCPU', { scalar: r.pick([0, 1, 2, 3, 4095, 4096, 70000]) })]
      default:
        return [
          this.#call('v', 'KVM_X86_SET_MSR_FILTER', {
            u32: { 0: r.below(3), 8: r.pick([0, 1, 2, 3, 3, 4]), 12: r.pick([0, 8, 8, 64, 20000]), 16: r.pick([0x174, 0xc0000080]) },
            pointers: [[24, 'S', 0x200]],
          }),
        ]
    }
  }

  #routing(): Call {
    const r = this.#r
    const n = r.below(4)
    const u32: Record<number, number> = { 0: r.below(12) ? n : 5000, 4: r.below(8) ? 0 : 1 }
    for (let i = 0; i < n; i++) {
      const at = 8 + i * 48
      const type = r.pick([1, 1, 2, 2, 3, 4])
      u32[at] = r.pick([0, 1, 5, 23, 100, 4095, 4096])
      u32[at + 4] = type
      u32[at + 8] = r.below(8) ? 0 : 1
      u32[at + 16] = type === 2 ? 0xfee00000 : r.below(4)
      u32[at + 20] = type === 2 ? r.pick([0, 0x100]) : r.pick([0, 7, 8, 23, 24])
      u32[at + 24] = 0x31
    }
    return this.#call('v', 'KVM_SET_GSI_ROUTING', { length: 8 + 4 * 48, u32 })
  }

  /** A table that every host can serve. */
  #cpuid(on: number): Command[] {
    const r = this.#r
    const entries: (readonly number[])[] = [
      [0, 0, 0, 13, 0x68747541, 0x444d4163, 0x69746e65],
      [1, 0, 0, 0xa20f10, 0x800, 0x80202001 | (r.below(2) << 17) | (r.below(2) << 21) | (1 << 26), 0x178bfbff],
      [7, 0, 1, 0, r.pick([0, 0x219c01a9]), r.pick([0, 4]), 0],
      [0x80000000, 0, 0, 0x80000008, 0, 0, 0],
      [0x80000001, 0, 0, 0, 0, 0x1f3, r.pick([0x2fd3fbff, 0x2fd3fbff, 0x08100800])],
      [0x80000008, 0, 0, r.pick([0x3028, 0x3030, 0x3034]), 0, 0, 0],
    ]
    const n = r.below(8) ? entries.length : r.below(entries.length)
    const u32: Record<number, number> = { 0: r.below(20) ? n : 300 }
    entries.forEach((entry, i) => {
      entry.forEach((value, j) => {
        u32[8 + i * 40 + j * 4] = value
      })
    })
    return [
      this.#call(on, 'KVM_SET_CPUID2', { length: 8 + 40 * entries.length, u32 }),
      this.#call(on, 'KVM_GET_CPUID2', { length: 8 + 40 * 8, u32: { 0: r.pick([8, 8, 8, 1]) } }),
    ]
  }

  #vcpu(on: number): Command[] {
    const r = this.#r
    const pair = (get: Name, set: Name, changes: Parts): Command[] => {
      const ask = this.#call(on, get)
      return r.below(4) ? [ask, this.#call(on, set, { base: get, ...changes }), ask] : [ask]
    }
    switch (r.below(26)) {
      case 0:
      case 1:
        return pair('KVM_GET_REGS', 'KVM_SET_REGS', { u64: { [r.below(18) * 8]: r.word(64) } })
      case 2:
      case 3: {
        const field = r.pick([224, 232, 240, 248, 256, 264, 272, 0, 8, 12, 14, 18, 19, 20, 22, 23])
        const changes: Parts = r.below(3)
          ? field < 224
            ? { u8: { [field]: r.below(256) } }
            : { u64: { [field]: this.#control(field) } }
          : { u8: { [r.below(312)]: r.below(256) } }
        return r.below(2) ? pair('KVM_GET_SREGS', 'KVM_SET_SREGS', changes) : pair('KVM_GET_SREGS2', 'KVM_SET_SREGS2', changes)
      }
      case 4:
      case 5:
      case 6:
        return pair('KVM_GET_VCPU_EVENTS', 'KVM_SET_VCPU_EVENTS', this.#events())
      case 7:
        return [this.#call(on, 'KVM_SET_MP_STATE', { u32: { 0: r.below(12) } }), this.#call(on, 'KVM_GET_MP_STATE')]
      case 8:
        return pair('KVM_GET_DEBUGREGS', 'KVM_SET_DEBUGREGS', { u64: { [r.below(7) * 8]: r.word(64) } })
      case 9:
        return [
          this.#call(on, 'KVM_SET_GUEST_DEBUG', {
            u32: { 0: r.pick([0, 1, 2, 3, 0x10001, 0x20001, 0x40001, 0x80001, 0x100001, 4, 0x200000]) },
            u64: { 64: r.word(32) },
          }),
        ]
      case 10:
        return pair('KVM_GET_FPU', 'KVM_SET_FPU', { u8: { [r.below(416)]: r.below(256) } })
      case 11:
        return pair(
          'KVM_GET_XSAVE',
          'KVM_SET_XSAVE',
          r.below(2) ? { u8: { [r.below(832)]: r.below(256) } } : { u64: { [r.pick([512, 520, 528])]: r.word(8) } },
        )
      case 12:
        return pair('KVM_GET_XCRS', 'KVM_SET_XCRS', {
          u64: { 16: r.pick([1, 3, 7, 2, 5, 0, 0x800000000000n]) },
          u32: { 0: r.pick([1, 1, 1, 0, 16, 17]), 4: r.pick([0, 0, 0, 1]) },
        })
      case 13: {
        const lvt = r.pick([0x20, 0x80, 0xb0, 0xd0, 0xe0, 0xf0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380, 0x3e0, 0x300, 0x310, 0x30])
        return pair('KVM_GET_LAPIC', 'KVM_SET_LAPIC', { u32: { [lvt]: Number(r.word(32)) } })
      }
      case 14:
      case 15:
      case 16:
        return this.#msrs(on)
      case 17:
        return this.#cpuid(on)
      case 18:
        return [this.#call(on, 'KVM_TRANSLATE', { u64: { 0: r.pick([0, 0x1234, 0x9000, 0x100000, 0xfffff000]) } })]
      case 19:
        return [this.#call(on, 'KVM_INTERRUPT', { u32: { 0: r.pick([0x20, 0x30, 255, 256, 0xffffffff]) } })]
      case 20:
        return [this.#call(on, 'KVM_NMI')]
      case 21:
        return [
          this.#call(on, 'KVM_X86_SETUP_MCE', { u64: { 0: r.pick([10, 0x10a, 32, 33, 0, 0x100010a, 1n << 40n, 0x800010a]) } }),
          this.#call(on, 'KVM_X86_SET_MCE', {
            u64: { 0: r.pick([0, 1n << 63n, 0xa000000000000000n]), 8: 0x1000, 16: 5, 24: 4 },
            u8: { 32: r.pick([0, 1, 9, 10, 40]) },
          }),
        ]
      case 22:
        return [
          this.#call(on, 'KVM_SET_TSC_KHZ', { scalar: r.pick([0, 1000000, 0x7fffffff]) }),
          this.#call(on, 'KVM_SET_SIGNAL_MASK', { length: 12, u32: { 0: r.pick([8, 8, 4, 0]) } }),
          this.#call(on, 'KVM_TPR_ACCESS_REPORTING', { u32: { 4: r.below(2) } }),
          this.#call(on, 'KVM_KVMCLOCK_CTRL'),
          this.#call(on, 'KVM_ENABLE_CAP', { u32: { 0: r.pick([0, 121, 201, 116]) } }),
        ]
      case 23:
        return [
          this.#call(on, 'KVM_GET_DEVICE_ATTR', { u32: { 4: r.below(2) }, u64: { 8: r.below(2) }, pointers: [[16, 'S', 0x40]] }),
          this.#call(on, 'KVM_HAS_DEVICE_ATTR', { u32: { 4: r.below(2) }, u64: { 8: r.below(2) } }),
        ]
      default:
        return this.#run(on)
    }
  }

  #control(field: number): bigint {
    const r = this.#r
    if (field === 224) return r.pick([0x10n, 0x11n, 0x80000011n, 0x60000010n, 0x80000010n, 0x20000010n, 0x100000010n])
    if (field === 240) return r.pick([0n, 0x1000n, 0xfffn, 1n << 40n, 1n << 52n])
    if (field === 248) return r.pick([0n, 0x20n, 0x10n, 0x80n, 0x600n, 0x20000n, 0x40000n, 0x800n, 1n << 40n, 0x1000n])
    if (field === 256) return r.pick([0n, 8n, 15n, 16n, 255n])
    if (field === 264) return r.pick([0n, 0x100n, 0x500n, 0x400n, 0x1000n, 0x4000n, 0xd01n, 0x200n])
    if (field === 272) return r.pick([0xfee00900n, 0xfee00800n, 0xfee00d00n, 0xfee00c00n, 0x1000n, 0xfee00000n, 0xfee00901n, 1n << 50n])
    return r.word(64)
  }

  #events(): Parts {
    const r = this.#r
    const u8: Record<number, number> = {}
    for (let i = 1 + r.below(3); i > 0; i--)
      u8[r.pick([0, 1, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 24, 25, 26, 27, 28, 55])] = r.pick([0, 1, 1, 2, 3, 13, 40])
    return { u8, u32: { 4: r.below(4), 20: r.pick([0, 1, 4, 5, 8, 0xd, 0x10, 0x1d, 0x20, 0x40]) } }
  }

  #msrs(on: number): Command[] {
    const r = this.#r
    const n = 1 + r.below(3)
    const list = Array.from({ length: n }, () => r.pick(MSRS))
    const u32: Record<number, number> = { 0: r.below(15) ? n : r.pick([0, 256, 300]) }
    const u64: Record<number, bigint> = {}
    list.forEach((index, i) => {
      u32[8 + i * 16] = index
      u64[16 + i * 16] = r.below(3) ? r.pick(MSR_VALUES) : r.word(64)
    })
    const length = 8 + 16 * 3
    const get = this.#call(on, 'KVM_GET_MSRS', { length, u32 })
    // The TSC runs: set only where the answer does not depend on when.
    const moving = list.some((index) => index === 0x10 || index === 0x3b || index === 0x6e0)
    return r.below(2) || moving ? [get] : [this.#call(on, 'KVM_SET_MSRS', { length, u32, u64 }), get]
  }

  /** immediate_exit completes what the last run left open. */
  #complete(on: number): Command[] {
    return [write(on, 1, Uint8Array.of(1)), this.#call(on, 'KVM_RUN'), write(on, 1, Uint8Array.of(0))]
  }

  /** A fresh program at 0x1000 in real mode, entered with registers as they are. */
  #run(on: number): Command[] {
    const r = this.#r
    if (r.below(3) === 0) return this.#complete(on)
    const program = Uint8Array.from(r.pick(PROGRAMS))
    const regs = this.#call(on, 'KVM_GET_REGS')
    const sregs = this.#call(on, 'KVM_GET_SREGS')
    // No events and no breakpoints: how they reach a guest without handlers is the emulator's matter.
    const quiet = [
      this.#call(on, 'KVM_SET_VCPU_EVENTS', { u32: { 20: 5 } }),
      this.#call(on, 'KVM_SET_GUEST_DEBUG'),
      this.#call(on, 'KVM_SET_MP_STATE'),
    ]
    return [
      // The program's place is every vCPU's: nobody's instruction is open while it changes.
      ...[...this.#ran.add(on)].flatMap((vcpu) => this.#complete(vcpu)),
      ...quiet,
      write('M', 0x1000, program),
      sregs,
      this.#call(on, 'KVM_SET_SREGS', { base: 'KVM_GET_SREGS', u64: { 0: 0, 24: 0 }, u16: { 12: 0, 36: 0 } }),
      this.#call(on, 'KVM_SET_REGS', { u64: { 0: 0x1234, 8: r.below(100), 24: 0x44, 48: 0x2000, 128: 0x1000, 136: 2 } }),
      this.#call(on, 'KVM_RUN'),
      read(on, 0, 64),
      regs,
    ]
  }
}
