/**
 * What the host's /dev/kvm of the build machines (PVM: guests in ring 3 of a host without SVM or VMX, ring 0 interpreted by
 * KVM's emulator; Linux 6.18 built without SMM, Hyper-V, Xen and SEV) answers otherwise than KVM on SVM, and the few places
 * where Cloister's machine is another one. One line each; a difference that none of them names fails the test.
 */
import { CAP, REQUEST } from 'cloister'
import type { Answer, Command } from './script.ts'

export interface Known {
  readonly why: string
  /** `host`: their KVM or their CPU is another; `ours`: Cloister is, by a decision. */
  readonly whose: 'host' | 'ours'
  readonly names: readonly string[]
  /** Results of Cloister and of the host; absent = both succeed and bytes differ. */
  readonly results?: readonly (readonly [ours: number | null, theirs: number | null])[]
  /** Bytes that may differ (from, to). */
  readonly bytes?: readonly (readonly [from: number, to: number])[]
  /** `before`: the commands of this VM so far. */
  readonly when?: (command: Command, ours: Answer, theirs: Answer, before: readonly Command[]) => boolean
  /** The VMs are no longer alike: the rest of the sequence is not compared. */
  readonly parts?: true
}

const field = (command: Command, at: number): number => {
  if (command.do !== 'call') return 0
  const patch = command.patches.find(([where]) => where === at)?.[1]
  return patch === undefined ? 0 : patch.reduceRight((value, byte) => value * 256 + byte, 0)
}
/** An MSR of KVM_GET_MSRS or KVM_SET_MSRS. */
const names =
  (...indices: number[]) =>
  (command: Command): boolean =>
    [8, 24, 40].some((at) => indices.includes(field(command, at)))
/** Calls of these names on the command's vCPU over an access that the last run, or immediate_exit since then, completed. */
const overAccess =
  (...calls: readonly string[]) =>
  (command: Command, _ours: Answer, _theirs: Answer, before: readonly Command[]): boolean => {
    if (command.do !== 'call') return false
    let immediate = false
    let seen = false
    let earlier = false
    for (const c of before) {
      if (c.do === 'write' && c.area === command.on && c.at === 1) immediate = c.bytes[0] !== 0
      if (c.do !== 'call' || c.on !== command.on) continue
      if (calls.includes(c.name)) seen = true
      if (c.name !== 'KVM_RUN' || immediate) continue
      earlier = seen
      seen = false
    }
    return seen || earlier
  }
const SREGS = ['KVM_GET_SREGS', 'KVM_SET_SREGS', 'KVM_GET_SREGS2', 'KVM_SET_SREGS2']
const SEGMENTS: readonly (readonly [number, number])[] = Array.from({ length: 8 }, (_, i) => [i * 24 + 14, i * 24 + 24])

export const KNOWN: readonly Known[] = [
  {
    why: 'count_load_time of the channels: the time of the call',
    whose: 'host',
    names: ['KVM_GET_PIT2'],
    bytes: [0, 1, 2].map((i) => [i * 24 + 16, i * 24 + 24] as const),
  },
  {
    why: 'the clock runs; Cloister has no wall clock (REALTIME) and no host TSC beside virtual time',
    whose: 'ours',
    names: ['KVM_GET_CLOCK'],
    bytes: [[0, 48]],
  },
  {
    why: 'the TSC, TSC_ADJUST and what counts with it run',
    whose: 'host',
    names: ['KVM_GET_MSRS'],
    bytes: [[0, 56]],
    when: names(0x10, 0x3b),
  },
  { why: 'current count of a running timer', whose: 'host', names: ['KVM_GET_LAPIC'], bytes: [[0x390, 0x394]] },
  {
    why: 'no TSC scaling on PVM',
    whose: 'host',
    names: ['KVM_SET_TSC_KHZ'],
    results: [
      [0, -22],
      [-22, 0],
    ],
  },
  {
    why: "the host's CPU has more state components than the modelled one (AVX-512, PKRU): sw_bytes",
    whose: 'host',
    names: ['KVM_GET_XSAVE', 'KVM_GET_XSAVE2'],
    bytes: [
      [464, 472],
      [576, 4096],
    ],
  },
  { why: 'components that only the host has', whose: 'host', names: ['KVM_SET_XSAVE'], results: [[-22, 0]], parts: true },
  {
    why: "PVM completes a vCPU's CPUID table with leaves of its own",
    whose: 'host',
    names: ['KVM_GET_CPUID2'],
    results: [
      [0, -7],
      [0, 0],
    ],
    bytes: [[0, 4096]],
  },
  {
    why: 'X2APIC in that completed table: directed EOI in the version register',
    whose: 'host',
    names: ['KVM_GET_LAPIC'],
    bytes: [
      [0x33, 0x34],
      [0x390, 0x394],
    ],
  },
  {
    why: 'ICR in x2APIC mode is one register of 64 bits there, two on SVM (x2apic_icr_is_split)',
    whose: 'host',
    names: ['KVM_GET_LAPIC'],
    bytes: [[0x304, 0x308]],
  },
  {
    why: 'what CPUID allows (CR4, XCR0) follows that completed table',
    whose: 'host',
    names: ['KVM_SET_SREGS', 'KVM_SET_SREGS2', 'KVM_SET_XCRS'],
    results: [[-22, 0]],
    parts: true,
  },
  {
    why: 'SVM packs the attributes of a segment into 12 bits (svm_set_segment); PVM keeps the bytes',
    whose: 'host',
    names: SREGS,
    bytes: SEGMENTS,
  },
  {
    why: 'attributes like G = 0x9e, kept as bytes: their limit checks go by other bits',
    whose: 'host',
    names: ['read', 'KVM_GET_REGS'],
    bytes: [[0, 144]],
    when: (c, _ours, _theirs, before) =>
      (c.do === 'call' || (c.do === 'read' && typeof c.area === 'number')) &&
      before.some(
        (b) =>
          b.do === 'call' &&
          b.on === (c.do === 'read' ? c.area : c.on) &&
          (b.name === 'KVM_SET_SREGS' || b.name === 'KVM_SET_SREGS2') &&
          b.patches.some(([at, [value]]) => SEGMENTS.some(([from, to]) => at >= from && at < to) && (value ?? 0) > 1),
      ),
    parts: true,
  },
  {
    why: 'no SMM in that build: one address space',
    whose: 'host',
    names: ['KVM_SET_USER_MEMORY_REGION'],
    results: [
      [0, -22],
      [-17, -22],
      [-14, -22],
    ],
    when: (c) => field(c, 0) >>> 16 === 1,
  },
  {
    why: 'no SMM in that build',
    whose: 'host',
    names: ['KVM_SET_VCPU_EVENTS'],
    results: [
      [0, -22],
      [-38, -22],
    ],
    when: (c) => (field(c, 20) & 8) !== 0,
    parts: true,
  },
  { why: 'no SMM in that build', whose: 'host', names: ['KVM_SMI'], results: [[0, -25]], parts: true },
  {
    why: 'no Hyper-V in that build',
    whose: 'host',
    names: ['KVM_SET_GSI_ROUTING'],
    results: [[0, -22]],
    when: (c) => [12, 60, 108].some((at) => field(c, at) === 4),
    parts: true,
  },
  {
    why: 'no SEV on that host',
    whose: 'host',
    names: ['KVM_ENABLE_CAP'],
    results: [
      [-9, -22],
      [-22, -22],
    ],
    when: (c) => field(c, 0) === CAP.KVM_CAP_VM_COPY_ENC_CONTEXT_FROM,
  },
  {
    why: 'Cloister names what it does not model',
    whose: 'ours',
    names: ['KVM_ENABLE_CAP'],
    results: [
      [-38, 0],
      [-38, -22],
      [-22, 0],
    ],
    when: (c) =>
      (
        [
          CAP.KVM_CAP_DISABLE_QUIRKS,
          CAP.KVM_CAP_DISABLE_QUIRKS2,
          CAP.KVM_CAP_X86_DISABLE_EXITS,
          CAP.KVM_CAP_X86_BUS_LOCK_EXIT,
          CAP.KVM_CAP_X2APIC_API,
        ] as number[]
      ).includes(field(c, 0)),
    parts: true,
  },
  {
    why: 'microcode revision: SVM starts with 0x01000065, PVM with 0',
    whose: 'host',
    names: ['KVM_GET_MSRS'],
    bytes: [[0, 56]],
    when: names(0x8b),
  },
  {
    why: 'PVM does not check PAT and DEBUGCTL as SVM does',
    whose: 'host',
    names: ['KVM_SET_MSRS', 'KVM_GET_MSRS'],
    results: [[null, null]],
    bytes: [[0, 56]],
    when: names(0x277, 0x1d9),
    parts: true,
  },
  {
    why: 'no SVM on that host: it keeps the upper halves of SYSENTER_ESP and _EIP',
    whose: 'host',
    names: ['KVM_GET_MSRS'],
    bytes: [[0, 56]],
    when: names(0x175, 0x176),
  },
  { why: 'no SVM on that host: VM_HSAVE_PA', whose: 'host', names: ['KVM_GET_MSRS'], bytes: [[0, 56]], when: names(0xc0010117) },
  {
    why: 'IA32_MISC_ENABLE of PVM: fast strings instead of BTS and PEBS unavailable',
    whose: 'host',
    names: ['KVM_GET_MSRS'],
    bytes: [[0, 56]],
    when: names(0x1a0),
  },
  {
    why: 'Cloister does not offer kvmclock',
    whose: 'ours',
    names: ['KVM_GET_MSRS', 'KVM_SET_MSRS'],
    results: [[null, null]],
    when: names(0x4b564d00, 0x4b564d01),
    parts: true,
  },
  { why: 'no paging without long mode on PVM: PG is dropped', whose: 'host', names: SREGS, bytes: [[227, 228]], parts: true },
  {
    why: 'what XSAVES leaves in memory of components in their initial state',
    whose: 'ours',
    names: ['KVM_GET_FPU', 'KVM_GET_XSAVE', 'KVM_SET_XSAVE'],
    bytes: [[0, 464]],
    when: (_, ours, theirs) => (ours.bytes ?? new Uint8Array(0)).every((b, i) => b === theirs.bytes?.[i] || b === 0 || i >= 464),
    parts: true,
  },
  {
    why: 'TPR after an entry: CR8 carries bits 7:4 only',
    whose: 'host',
    names: ['KVM_GET_LAPIC'],
    bytes: [
      [0x80, 0x84],
      [0xa0, 0xa4],
    ],
    when: (_, ours, theirs) => ((ours.bytes?.[0x80] ?? 0) & 0xf0) === ((theirs.bytes?.[0x80] ?? 0) & 0xf0),
    parts: true,
  },
  {
    why: 'no 5-level paging and no PCID on that host',
    whose: 'host',
    names: ['KVM_SET_SREGS', 'KVM_SET_SREGS2'],
    results: [[0, -22]],
    when: (c) => (field(c, 248) & 0x21000) !== 0,
    parts: true,
  },
  {
    why: 'XINUSE of the physical CPU, which is not told what the emulator did',
    whose: 'host',
    names: ['KVM_GET_XSAVE'],
    bytes: [[512, 513]],
    parts: true,
  },
  {
    why: 'CPUID is frozen by the first entry into the guest; what their emulator runs never enters, and the table that PVM completed is never the same',
    whose: 'host',
    names: ['KVM_SET_CPUID2'],
    results: [
      [-22, 0],
      [0, -22],
    ],
    parts: true,
  },
  { why: 'a halted guest: their emulator gives up instead', whose: 'host', names: ['KVM_RUN'], results: [[-4, 0]], parts: true },
  {
    why: 'their emulator completes an IN even where userspace moved RIP (SVM: kvm_is_linear_rip)',
    whose: 'host',
    names: ['KVM_GET_REGS'],
    bytes: [
      [0, 4],
      [128, 136],
    ],
    when: (c, ours, theirs, before) =>
      (theirs.bytes?.[128] ?? 0) - (ours.bytes?.[128] ?? 0) !== 2 && overAccess('KVM_SET_REGS')(c, ours, theirs, before),
    parts: true,
  },
  {
    why: "PVM executes an instruction anew whose open access met a reset of the MMU (other CR0, CR3, CR4 or EFER); nothing between KVM_SET_SREGS and complete_userspace_io does so in Linux's x86.c and regs.c",
    whose: 'host',
    names: ['KVM_GET_REGS'],
    bytes: [
      [0, 8],
      [128, 130],
    ],
    when: (c, ours, theirs, before) =>
      (ours.bytes?.[128] ?? 0) > (theirs.bytes?.[128] ?? 0) &&
      overAccess('KVM_SET_SREGS', 'KVM_SET_SREGS2', 'KVM_SET_MSRS')(c, ours, theirs, before),
    parts: true,
  },
  {
    why: 'KVM_SET_REGS over an open read: their emulator ends what it had decoded and forgets which register the data go to (emulator_invalidate_register_cache); Cloister executes at the RIP of now',
    whose: 'ours',
    names: ['KVM_GET_REGS'],
    bytes: [
      [0, 8],
      [48, 56],
      [128, 144],
    ],
    when: (c, ours, theirs, before) =>
      (theirs.bytes?.[128] ?? 0) - (ours.bytes?.[128] ?? 0) !== 2 && overAccess('KVM_SET_REGS')(c, ours, theirs, before),
    parts: true,
  },
  {
    why: 'before Linux 7 an exception that is injected and not pending did not keep KVM_GUESTDBG_INJECT_* out',
    whose: 'host',
    names: ['KVM_SET_GUEST_DEBUG'],
    results: [[-16, 0]],
    parts: true,
  },
  {
    why: 'a vector of KVM_INTERRUPT and an injected one share a place',
    whose: 'ours',
    names: ['KVM_INTERRUPT'],
    results: [[0, -17]],
    parts: true,
  },
  {
    why: 'a vector of KVM_INTERRUPT takes the place of an injected one (split irqchip): no longer shown',
    whose: 'ours',
    names: ['KVM_GET_VCPU_EVENTS'],
    bytes: [[8, 10]],
    when: (_, ours, theirs) => ours.bytes?.[8] === 0 && theirs.bytes?.[8] === 1,
    parts: true,
  },
  {
    why: 'a vector of KVM_INTERRUPT takes the place of an injected one (split irqchip): no longer shown',
    whose: 'ours',
    names: ['KVM_GET_SREGS', 'KVM_GET_SREGS2'],
    bytes: [[280, 312]],
    when: (_, ours, theirs) => ours.bytes?.subarray(280, 312).every((byte) => byte === 0) === true && theirs.bytes !== null,
    parts: true,
  },
  {
    why: 'an access that userspace answered ends by executing its instruction again, with the segments of now: a fault shuts down',
    whose: 'ours',
    names: ['KVM_RUN'],
    results: [[0, -4]],
    parts: true,
  },
  {
    why: 'exits that PVM cannot leave out',
    whose: 'host',
    names: ['KVM_ENABLE_CAP'],
    results: [[0, -22]],
    when: (c) => field(c, 0) === CAP.KVM_CAP_X86_DISABLE_EXITS,
    parts: true,
  },
  { why: 'no VM86 mode on PVM', whose: 'host', names: ['KVM_GET_REGS'], bytes: [[138, 139]] },
  { why: 'PVM needs a memory slot to enter', whose: 'host', names: ['KVM_RUN'], results: [[null, -28]], parts: true },
  {
    why: 'Cloister keeps resampling lines of 32 GSIs',
    whose: 'ours',
    names: ['KVM_IRQFD'],
    results: [
      [-38, 0],
      [-38, -16],
    ],
    when: (c) => field(c, 4) >= 32,
    parts: true,
  },
  {
    why: 'SVM knows one interrupt shadow, PVM keeps the byte',
    whose: 'host',
    names: ['KVM_GET_VCPU_EVENTS'],
    bytes: [[11, 12]],
    when: (_, ours, theirs) => (ours.bytes?.[11] !== 0) === (theirs.bytes?.[11] !== 0),
  },
  {
    why: 'no SMM in that build: nobody takes an SMI',
    whose: 'host',
    names: ['KVM_SIGNAL_MSI'],
    results: [[null, 0]],
    when: (c) => (field(c, 8) & 0x700) === 0x200,
    parts: true,
  },
  {
    why: 'an AP met INIT while it waited: -EAGAIN in Linux, -EINTR here; both mean run again',
    whose: 'ours',
    names: ['KVM_RUN'],
    results: [[-4, -11]],
    parts: true,
  },
  {
    why: 'their vCPU shuts down where the program runs',
    whose: 'host',
    names: ['read'],
    bytes: [[8, 64]],
    when: (c, ours, theirs) => c.do === 'read' && typeof c.area === 'number' && theirs.bytes?.[8] === 8 && ours.bytes?.[8] !== 8,
    parts: true,
  },
  {
    why: 'data of a read that nobody has answered yet',
    whose: 'host',
    names: ['read'],
    bytes: [[40, 48]],
    when: (c, _, theirs) =>
      c.do === 'read' && typeof c.area === 'number' && [6, 10].includes(theirs.bytes?.[8] ?? 0) && theirs.bytes?.[52] === 0,
  },
  {
    why: 'bytes of kvm_run behind the data of a store',
    whose: 'host',
    names: ['read'],
    bytes: [[41, 48]],
    when: (c, _, theirs) =>
      c.do === 'read' && typeof c.area === 'number' && [6, 10].includes(theirs.bytes?.[8] ?? 0) && theirs.bytes?.[52] === 1,
  },
  {
    why: 'their emulator gives up where SVM goes on',
    whose: 'host',
    names: ['read'],
    bytes: [[8, 64]],
    when: (c, _, theirs) => c.do === 'read' && typeof c.area === 'number' && theirs.bytes?.[8] === 17,
    parts: true,
  },
  {
    why: 'breakpoints in DR0..3 do not stop code that their emulator runs',
    whose: 'host',
    names: ['read'],
    bytes: [[8, 64]],
    when: (c, ours) => c.do === 'read' && typeof c.area === 'number' && ours.bytes?.[8] === 4,
    parts: true,
  },
  {
    why: 'how far the fetch of an instruction that cannot be emulated got',
    whose: 'host',
    names: ['read'],
    bytes: [[36, 64]],
    when: (c, ours, theirs) => c.do === 'read' && typeof c.area === 'number' && ours.bytes?.[8] === 17 && theirs.bytes?.[8] === 17,
    parts: true,
  },
  {
    why: "an event cannot be delivered: the host's emulator gives up, SVM says KVM_INTERNAL_ERROR_DELIVERY_EV",
    whose: 'host',
    names: ['read'],
    bytes: [[8, 64]],
    when: (c, ours, theirs) => c.do === 'read' && typeof c.area === 'number' && ours.bytes?.[8] === 17 && theirs.bytes?.[8] === 8,
    parts: true,
  },
  {
    why: 'RIP after an exit for OUT: their emulator has advanced it; SVM and Cloister advance over it at the next KVM_RUN',
    whose: 'host',
    names: ['KVM_GET_REGS'],
    bytes: [[128, 129]],
    when: (_, ours, theirs) => (theirs.bytes?.[128] ?? 0) - (ours.bytes?.[128] ?? 0) === 2 && ours.bytes?.[129] === 0x10,
  },
  {
    why: 'an address outside every mapping: Linux finds out at the first access, Cloister (the contract) at once',
    whose: 'ours',
    names: ['KVM_SET_USER_MEMORY_REGION'],
    results: [[-14, 0]],
    parts: true,
  },
  {
    why: 'bytes 10 to 15 of an x87 register in struct kvm_fpu and kvm_xsave are memory of KVM without a meaning',
    whose: 'ours',
    names: ['KVM_GET_FPU', 'KVM_GET_XSAVE', 'KVM_SET_XSAVE'],
    bytes: [
      ...Array.from({ length: 8 }, (_, i) => [i * 16 + 10, i * 16 + 16] as const),
      ...Array.from({ length: 8 }, (_, i) => [32 + i * 16 + 10, 32 + i * 16 + 16] as const),
    ],
  },
]

/** Requests whose bytes come back. */
const answers = (command: Command): boolean => command.do === 'read' || (command.do === 'call' && REQUEST[command.name] >>> 31 === 1)

export interface Difference {
  readonly known: Known | null
  readonly text: string
}

/** What differs between two answers, null if nothing does. */
export function compare(command: Command, ours: Answer, theirs: Answer, before: readonly Command[] = []): Difference | null {
  const name = command.do === 'call' ? command.name : command.do
  const candidates = KNOWN.filter((k) => k.names.includes(name) && (k.when === undefined || k.when(command, ours, theirs, before)))
  if (ours.result !== theirs.result) {
    const hit = candidates.find((k) =>
      k.results?.some(([a, b]) => (a === null || a === ours.result) && (b === null || b === theirs.result)),
    )
    return { known: hit ?? null, text: `${ours.result}, the host's KVM ${theirs.result}` }
  }
  if (ours.result < 0 || !answers(command) || ours.bytes === null || theirs.bytes === null) return null
  const pointers = command.do === 'call' ? command.pointers : []
  const differs: number[] = []
  for (let i = 0; i < ours.bytes.length; i++) {
    if (ours.bytes[i] !== theirs.bytes[i] && !pointers.some(([at, kind]) => i >= at && i < at + (kind === 'E' ? 4 : 8))) differs.push(i)
  }
  let parts: Known | null = null
  const left = differs.filter((i) => {
    const hit = candidates.find((k) => k.bytes?.some(([from, to]) => i >= from && i < to))
    if (hit && (parts === null || hit.parts)) parts = hit
    return hit === undefined
  })
  if (differs.length === 0) return null
  const bytes = (list: readonly number[]): string =>
    list
      .slice(0, 12)
      .map((i) => `${i}: ${ours.bytes?.[i]?.toString(16)}/${theirs.bytes?.[i]?.toString(16)}`)
      .join(' ')
  return left.length === 0 ? { known: parts, text: bytes(differs) } : { known: null, text: bytes(left) }
}
