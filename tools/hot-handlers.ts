/**
 * The handlers that live in the loop's switch: AssemblyScript text, specialised by operand size and form.
 * One template per instruction family; a row of the opcode map finds its handler by name.
 *
 * Every template is made twice. `hot` goes into a function without a single call, 25-35 % faster than one with calls
 * (V8 11 spills there all the same unless told not to, see host/cli.ts: the function is too large for its better register allocator):
 * what is not simple - an odd stack, a rare condition - returns before it had any effect; a TLB miss is served at the loop's end.
 * `slow` executes that one op with the slow paths in place.
 *
 * Inside a handler: `s` CPU structure, `op` current op, `n` next block (0 = not known). `continue` goes
 * on with the next op after `op += 32`; `break` leaves the block (CPU_LEAVE says why; 0 = branch taken, CPU_RIP set).
 * A handler of a memory form finds its operand at `h`: in fast() the loop looks it up (OP_ACCESS), so that a filled miss goes on
 * without a second dispatch and the look-up exists once.
 */
import type { Opcode } from '../spec/opcodes/index.ts'
import { missCode } from './generate-fill.ts'

export type Size = 1 | 2 | 4 | 8
export const sizes: readonly Size[] = [1, 2, 4, 8]
const U: Record<Size, string> = { 1: 'u8', 2: 'u16', 4: 'u32', 8: 'u64' }
const I: Record<Size, string> = { 1: 'i8', 2: 'i16', 4: 'i32', 8: 'i64' }
const shiftOf = (size: Size): number => 64 - size * 8

const KIND = 'const kd = load<u32>(s, CPU_FLAG_KIND);'
const A = 'load<u64>(s, CPU_FLAG_A)'
const B = 'load<u64>(s, CPU_FLAG_B)'
const R = 'load<u64>(s, CPU_FLAG_RESULT)'
const EF = 'load<u32>(s, CPU_EFLAGS)'
/** `cf`: the carry flag, whatever set it; INC and later kinds keep it as bit 0 of FLAG_A. */
const carryFrom = (k: string): string =>
  `let cf: u64 = 0; if (${k} == FLAG_SUB) cf = u64(${A} < ${B}); else if (${k} >= FLAG_INC) cf = ${A} & 1; else if (${k} == FLAG_ADD) cf = u64(${R} < ${A}); else if (${k} == FLAG_EAGER) cf = <u64>${EF} & 1;`
const CARRY = `const kc = load<u32>(s, CPU_FLAG_KIND); ${carryFrom('kc')}`
const ZERO = `(kd == FLAG_EAGER ? (${EF} & 0x40) != 0 : ${R} == 0)`
const SIGN = `(kd == FLAG_EAGER ? (${EF} & 0x80) != 0 : <i64>(${R} << <u64>load<u32>(s, CPU_FLAG_SHIFT)) < 0)`
/** SF != OF by an in-line test for the kinds that compilers compare with, else the slow function. */
const LESS = (equal: string): string =>
  `const sh: u64 = <u64>load<u32>(s, CPU_FLAG_SHIFT); if (kd == FLAG_SUB) yes = <i64>(${B} << sh) ${equal === '' ? '>' : '>='} <i64>(${A} << sh); else if (kd == FLAG_LOGIC) yes = <i64>(${R} << sh) < 0${equal}; else if (kd == FLAG_RESULT_ONLY) yes = (<i64>(${R} << sh) < 0) != ((${A} & 0x800) != 0)${equal}; else ${miss}`

/** `yes`: condition cc & 14 (SDM vol 1, appendix B), in line; `kd` is the flag kind. */
function test(pair: number): string {
  switch (pair) {
    case 1:
      return `${carryFrom('kd')} yes = cf != 0;`
    case 2:
      return `yes = ${ZERO};`
    case 3:
      return `if (kd == FLAG_SUB) yes = ${A} <= ${B}; else { ${carryFrom('kd')} yes = cf != 0 || ${ZERO}; }`
    case 4:
      return `yes = ${SIGN};`
    case 5:
      return `yes = kd == FLAG_EAGER ? (${EF} & 4) != 0 : (popcnt<u32>(<u32>${R} & 0xff) & 1) == 0;`
    case 6:
      return LESS('')
    case 7:
      return LESS(` || ${ZERO}`)
    default:
      return `if (kd == FLAG_LOGIC) yes = false; else ${miss}`
  }
}

/** Offset of the memory operand in its segment; outside the long-mode flat case OP_EA says what else is to be done. */
const offset =
  'load<u64>(s + <usize>load<u8>(op, OP_BASE)) + (load<u64>(s + <usize>load<u8>(op, OP_INDEX)) << <u64>load<u8>(op, OP_SCALE)) + <u64><i64>load<i32>(op, OP_DISP)'

/** First line of a hot handler's way out: the op is done again by the slow function. */
const miss = '{ store<u32>(s, <u32>op, CPU_SAVED_OP); return 0 }'
/** The TLB has no tag for the access of a stack form: execute() looks further. */
const missed = (size: Size, write: boolean): string =>
  `{ store<u64>(s, va, VCPU_MMU + MMU_MISS); store<u32>(s, <u32>op, CPU_SAVED_OP); return ${missCode(size, write)} }`

/** Those of `arithmetic` that write a result and all flags, and read none. */
const quietArithmetic = new Set(['ADD', 'OR', 'AND', 'SUB', 'XOR'])
const quietName = (name: string): string => name.replace('_', 'N_')
const arithmetic = new Set(['ADD', 'OR', 'ADC', 'SBB', 'AND', 'SUB', 'XOR', 'CMP', 'TEST'])

interface Alu {
  readonly compute: (size: Size) => string
  readonly flags: (size: Size) => string
  readonly writes: boolean
}
interface Handlers {
  /** By name, in the order of their ids: memory forms last. */
  readonly code: ReadonlyMap<string, string>
  /** Bytes and kind of the access of every memory form. */
  readonly accesses: ReadonlyMap<string, { readonly size: Size; readonly write: boolean }>
}

function build(hot: boolean): Handlers {
  const handlers = new Map<string, string>()
  const accesses = new Map<string, { readonly size: Size; readonly write: boolean }>()
  const put = (name: string, ...code: string[]): void => {
    handlers.set(name, code.join(' '))
  }

  const done = hot
    ? 'op += 32; continue'
    : '{ op += 32; if (<u32>load<u16>(op) < coldBase || atomic.load<u64>(s, CPU_BUDGET) < load<u64>(s, CPU_ICOUNT)) { store<u32>(s, <u32>op, CPU_SAVED_OP); return 1 } continue }'
  const rm = 's + <usize>load<u8>(op, OP_RM)'
  const reg = 's + <usize>load<u8>(op, OP_REG)'

  /** The slow path must know the op: whether a store hit the running block, and the exact time of MMIO, depend on it. */
  const noteOp = 'store<u32>(s, <u32>op, CPU_OP);'
  /** `va` of the memory operand. */
  const address = (size: Size, write: boolean): string =>
    `let va: u64 = ${offset}; const k = load<u8>(op, OP_EA); if (k) { if (k == 1) va = <u64><u32>va; else { ${noteOp} va = eaGeneral(s, op, va, ${size}, ${write}); if (load<u32>(s, CPU_LEAVE)) break } }`
  const entry = `const t: usize = ${hot ? 'tlb' : '<usize>load<u32>(s, CPU_TLB_BASE)'} + ((<usize>va >> 7) & 0x7fe0);`
  const page = (size: Size): string => (size === 1 ? '(va & ~(<u64>0xfff))' : `((va + ${size - 1}) & ~(<u64>0xfff))`)
  const host = '<usize>(<u32>va + load<u32>(t, TLB_ADDEND))'
  /** `h`: address of readable bytes at `va`. */
  const readable = (size: Size, op = 'op'): string =>
    hot
      ? `${entry} if (load<u64>(t, TLB_READ) != ${page(size)}) ${missed(size, false)} const h: usize = ${host};`
      : `${entry} let h: usize; if (load<u64>(t, TLB_READ) == ${page(size)}) h = ${host}; else { ${noteOp} h = slowRead(s, ${op}, va, ${size}); if (!h) break }`
  /** `h`: address of bytes to be modified in place; then `stored`. */
  const modifiable = (size: Size): string =>
    `${entry} let h: usize; if (load<u64>(t, TLB_WRITE) == ${page(size)}) h = ${host}; else { ${noteOp} h = slowModify(s, op, va, ${size}); if (!h) break }`
  const commit = hot ? '' : 'let c: u32 = 0; if (h == s + CPU_SCRATCH) { c = commitModify(s, op); if (c && c != LEAVE_NEXT) break }'
  const committed = hot ? done : `if (c) break; ${done}`
  /** The three kinds of memory forms: `h` is read, modified in place, or written with `value`. */
  const access = (name: string, size: Size, write: boolean, code: readonly string[]): void => {
    accesses.set(name, { size, write })
    put(name, ...(hot ? code : [address(size, write), ...code]))
  }
  const reads = (name: string, size: Size, ...code: readonly string[]): void =>
    access(name, size, false, hot ? code : [readable(size), ...code])
  const modifies = (name: string, size: Size, ...code: readonly string[]): void =>
    access(name, size, true, hot ? code : [modifiable(size), ...code])
  const writes = (name: string, size: Size, value: string): void =>
    access(name, size, true, [
      `const v: ${U[size]} = ${value};`,
      hot
        ? `store<${U[size]}>(h, v);`
        : `${entry} if (load<u64>(t, TLB_WRITE) == ${page(size)}) store<${U[size]}>(${host}, v); else { ${noteOp} if (slowWrite(s, op, va, ${size}, <u64>v)) break }`,
      done,
    ])
  const setRegister = (size: Size, where: string, value: string): string =>
    size === 4 ? `store<u64>(${where}, <u64>${value});` : `store<${U[size]}>(${where}, ${value});`

  /** RIP += distance. No local holds RIP: V8 would store it to the stack with every instruction. */
  const jump = (distance: string): string => `store<u64>(s, (load<u64>(s, CPU_RIP) + ${distance}) & load<u64>(s, CPU_RIP_MASK), CPU_RIP);`
  /** `n` from a chain slot; an empty one that may be linked is noted in CPU_LINK. */
  const chain = (slot: string, bit: number): string =>
    `n = <usize>load<u32>(op, ${slot}); if (!n) { if (load<u8>(op, OP_SCALE) & ${bit}) { store<u32>(s, <u32>op + <u32>${slot}, CPU_LINK); ${hot ? 'store<u32>(s, <u32>op, CPU_SAVED_OP); return 1' : ''} } }`
  /** `yes`: the condition in the opcode's low nibble. */
  const condition = hot
    ? `${KIND} let yes: bool = false; const cc = load<u32>(op, OP_EXTRA) & 15; switch (cc >> 1) { ${[1, 2, 3, 4, 5, 6, 7].map((p) => `case ${p}: { ${test(p)} break }`).join(' ')} default: { ${test(0)} break } } if (cc & 1) yes = !yes;`
    : 'const yes: bool = condition(s, load<u32>(op, OP_EXTRA) & 15);'

  const kind = (name: string, size: Size): string => `store<u64>(s, <u64>${name} | (<u64>${shiftOf(size)} << 32), CPU_FLAG_KIND);`
  const result = (r: string): string => `store<u64>(s, <u64>${r}, CPU_FLAG_RESULT);`
  const operands = 'store<u64>(s, <u64>a, CPU_FLAG_A); store<u64>(s, <u64>b, CPU_FLAG_B);'

  /** INC and DEC keep CF: it goes to FLAG_A. */
  const keepCarry = `${CARRY} store<u64>(s, cf, CPU_FLAG_A);`
  /** ZF SF PF from `r`, CF OF AF as bits. */
  const setResult = (z: Size, r: string, bits: string): string =>
    `${kind('FLAG_RESULT_ONLY', z)} ${result(r)} store<u64>(s, <u64>(${bits}), CPU_FLAG_A);`
  /** Rotates keep ZF SF PF AF. */
  const rotated = (bits: string): string =>
    `const kr = load<u32>(s, CPU_FLAG_KIND); const fr: u64 = <u64>(${bits}); if (kr == FLAG_RESULT_ONLY) store<u64>(s, (load<u64>(s, CPU_FLAG_A) & 16) | fr, CPU_FLAG_A); else if (kr >= FLAG_SUB && kr <= FLAG_LOGIC) { store<u64>(s, (kr == FLAG_LOGIC ? 0 : (load<u64>(s, CPU_FLAG_A) ^ load<u64>(s, CPU_FLAG_B) ^ load<u64>(s, CPU_FLAG_RESULT)) & 16) | fr, CPU_FLAG_A); store<u32>(s, FLAG_RESULT_ONLY, CPU_FLAG_KIND) } else ${hot ? miss : 'rotateFlags(s, <u32>fr);'}`

  const logic = (expression: string): Alu => ({
    compute: (z) => `const r: ${U[z]} = ${expression};`,
    flags: (z) => `${kind('FLAG_LOGIC', z)} ${result('r')}`,
    writes: true,
  })
  const withCarry = (sign: '+' | '-'): Alu => ({
    compute: (z) => `${CARRY} const ci: ${U[z]} = <${U[z]}>cf; const r: ${U[z]} = a ${sign} b ${sign} ci;`,
    flags: (z) => {
      const cf = sign === '+' ? '(ci ? r <= a : r < a)' : '(ci ? a <= b : a < b)'
      const of = sign === '+' ? '(a ^ r) & (b ^ r)' : '(a ^ b) & (a ^ r)'
      return setResult(z, 'r', `u32(${cf}) | (<u32>((${of}) >> ${z * 8 - 1}) << 11) | (<u32>(a ^ b ^ r) & 16)`)
    },
    writes: true,
  })
  const alu: Record<string, Alu> = {
    ADD: { compute: (z) => `const r: ${U[z]} = a + b;`, flags: (z) => `${kind('FLAG_ADD', z)} ${result('r')} ${operands}`, writes: true },
    OR: logic('a | b'),
    ADC: withCarry('+'),
    SBB: withCarry('-'),
    AND: logic('a & b'),
    SUB: { compute: (z) => `const r: ${U[z]} = a - b;`, flags: (z) => `${kind('FLAG_SUB', z)} ${result('r')} ${operands}`, writes: true },
    XOR: logic('a ^ b'),
    CMP: { compute: (z) => `const r: ${U[z]} = a - b;`, flags: (z) => `${kind('FLAG_SUB', z)} ${result('r')} ${operands}`, writes: false },
    TEST: { ...logic('a & b'), writes: false },
  }

  /** Also makes the quiet form, for places where the block overwrites the flags unread; the slow function sets them all the same. */
  const flagged = (name: string, z: Size, flags: string, make: (name: string, flags: string) => void): void => {
    make(name, flags)
    if (z >= 4) make(quietName(name), hot ? '' : flags)
  }
  for (const [name, f] of Object.entries(alu)) {
    for (const z of sizes) {
      const u = U[z]
      const a = (where: string): string => `const a: ${u} = load<${u}>(${where});`
      const imm = `const b: ${u} = <${u}>load<u64>(op, OP_IMM);`
      const register = (form: string, where: string, b: string): void => {
        const make = (as: string, flags: string): void =>
          put(as, a(where), b, f.compute(z), f.writes ? setRegister(z, where, 'r') : '', flags, done)
        if (quietArithmetic.has(name)) flagged(`${name}_${form}_${z}`, z, f.flags(z), make)
        else make(`${name}_${form}_${z}`, f.flags(z))
      }
      const inMemory = (form: string, b: string): void =>
        f.writes
          ? modifies(`${name}_${form}_${z}`, z, a('h'), b, f.compute(z), `store<${u}>(h, r);`, commit, f.flags(z), committed)
          : reads(`${name}_${form}_${z}`, z, a('h'), b, f.compute(z), f.flags(z), done)
      register('rr', rm, `const b: ${u} = load<${u}>(${reg});`)
      register('gr', reg, `const b: ${u} = load<${u}>(${rm});`)
      register('ri', rm, imm)
      const fromMemory = (as: string, flags: string): void =>
        reads(as, z, a(reg), `const b: ${u} = load<${u}>(h);`, f.compute(z), f.writes ? setRegister(z, reg, 'r') : '', flags, done)
      if (quietArithmetic.has(name)) flagged(`${name}_rm_${z}`, z, f.flags(z), fromMemory)
      else fromMemory(`${name}_rm_${z}`, f.flags(z))
      inMemory('mr', `const b: ${u} = load<${u}>(${reg});`)
      inMemory('mi', imm)
    }
  }

  for (const z of sizes) {
    const u = U[z]
    put(`MOV_rr_${z}`, setRegister(z, rm, `load<${u}>(${reg})`), done)
    put(`MOV_gr_${z}`, setRegister(z, reg, `load<${u}>(${rm})`), done)
    put(`MOV_ri_${z}`, setRegister(z, rm, `<${u}>load<u64>(op, OP_IMM)`), done)
    reads(`MOV_rm_${z}`, z, setRegister(z, reg, `load<${u}>(h)`), done)
    writes(`MOV_mr_${z}`, z, `load<${u}>(${reg})`)
    writes(`MOV_mi_${z}`, z, `<${u}>load<u64>(op, OP_IMM)`)

    const unary: Record<string, readonly [string, string]> = {
      INC: [`const r: ${u} = a + 1;`, `${keepCarry} ${kind('FLAG_INC', z)} ${result('r')}`],
      DEC: [`const r: ${u} = a - 1;`, `${keepCarry} ${kind('FLAG_DEC', z)} ${result('r')}`],
      NEG: [
        `const r: ${u} = 0 - a;`,
        `${kind('FLAG_SUB', z)} ${result('r')} store<u64>(s, 0, CPU_FLAG_A); store<u64>(s, <u64>a, CPU_FLAG_B);`,
      ],
      NOT: [`const r: ${u} = ~a;`, ''],
    }
    for (const [name, [compute, flags]] of Object.entries(unary)) {
      const register = (as: string, set: string): void =>
        put(as, `const a: ${u} = load<${u}>(${rm}); ${compute} ${setRegister(z, rm, 'r')} ${set}`, done)
      if (flags === '') register(`${name}_r_${z}`, flags)
      else flagged(`${name}_r_${z}`, z, flags, register)
      modifies(`${name}_m_${z}`, z, `const a: ${u} = load<${u}>(h); ${compute} store<${u}>(h, r); ${commit} ${flags} ${committed}`)
    }
  }

  for (const z of [4, 8] as const) {
    const u = U[z]
    put(
      `LEA_${z}`,
      `const v: u64 = ${offset};`,
      z === 8
        ? `store<u64>(${reg}, load<u8>(op, OP_FLAGS) < 0xc0 ? <u64><u32>v : v);`
        : `store<u64>(${reg}, load<u8>(op, OP_FLAGS) < 0x80 ? v & 0xffff : <u64><u32>v);`,
      done,
    )
    for (const [name, from, signed] of [
      ['MOVZX8', 1, false],
      ['MOVZX16', 2, false],
      ['MOVSX8', 1, true],
      ['MOVSX16', 2, true],
      ['MOVSXD', 4, true],
    ] as const) {
      // 63 is ARPL outside 64-bit mode: only the 64-bit form is hot.
      if (name === 'MOVSXD' && z === 4) continue
      const value = (where: string): string => (signed ? `<${u}><${I[z]}>load<${I[from]}>(${where})` : `<${u}>load<${U[from]}>(${where})`)
      put(`${name}_r_${z}`, `store<u64>(${reg}, <u64>${value(rm)});`, done)
      reads(`${name}_m_${z}`, from, `store<u64>(${reg}, <u64>${value('h')});`, done)
    }
    put(`CMOV_r_${z}`, condition, `store<u64>(${reg}, <u64>(yes ? load<${u}>(${rm}) : load<${u}>(${reg})));`, done)
    reads(`CMOV_m_${z}`, z, `const v: ${u} = load<${u}>(h);`, condition, `store<u64>(${reg}, <u64>(yes ? v : load<${u}>(${reg})));`, done)
    const bits = z * 8
    const shifts: Record<string, readonly [string, string]> = {
      SHL: [
        `const r: ${u} = a << c;`,
        setResult(z, 'r', `0x10 | <u32>(a >> (${bits} - c) & 1) | (<u32>((r >> ${bits - 1}) ^ (a >> (${bits} - c) & 1)) << 11)`),
      ],
      SHR: [`const r: ${u} = a >> c;`, setResult(z, 'r', `0x10 | <u32>(a >> (c - 1) & 1) | (<u32>(r >> ${bits - 2}) << 11)`)],
      SAR: [`const r: ${u} = <${u}>(<${I[z]}>a >> <${I[z]}>c);`, setResult(z, 'r', `0x10 | (<u32>(<${I[z]}>a >> <${I[z]}>(c - 1)) & 1)`)],
      ROL: [`const r: ${u} = rotl<${u}>(a, c);`, rotated(`<u32>(r & 1) | (<u32>((r >> ${bits - 1}) ^ (r & 1)) << 11)`)],
      ROR: [
        `const r: ${u} = rotr<${u}>(a, c);`,
        rotated(`<u32>(r >> ${bits - 1}) | (<u32>((r >> ${bits - 1}) ^ (r >> ${bits - 2} & 1)) << 11)`),
      ],
    }
    for (const [name, [compute, flags]] of Object.entries(shifts)) {
      for (const [form, count] of [
        ['i', '<u32>load<u8>(op, OP_IMM)'],
        ['c', '<u32>load<u8>(s, 8)'],
      ] as const) {
        const make = (as: string, set: string): void => {
          const operands = `const c: ${u} = <${u}>(${count} & ${bits - 1}); const a: ${u} = load<${u}>(${rm});`
          const some = `${compute} ${set} store<u64>(${rm}, <u64>r)`
          put(as, operands, set === '' ? `${some};` : `if (c) { ${some} } else store<u64>(${rm}, <u64>a);`, done)
        }
        // Rotates keep flags that an earlier instruction may have set.
        if (name.startsWith('R')) make(`${name}_${form}_${z}`, flags)
        else flagged(`${name}_${form}_${z}`, z, flags, make)
      }
    }
    const product =
      z === 4
        ? 'const p: i64 = <i64><i32>a * <i64><i32>b; const r: u32 = <u32>p; const o: u32 = u32(p != <i64><i32>r);'
        : // High half of the signed product by 32-bit parts (Hacker's Delight, 8-2).
          'const r: u64 = a * b; const ll: u64 = (a & 0xffffffff) * (b & 0xffffffff); const mm: i64 = (<i64>a >> 32) * <i64>(b & 0xffffffff) + <i64>(ll >> 32); const ww: i64 = (mm & 0xffffffff) + <i64>(a & 0xffffffff) * (<i64>b >> 32); const o: u32 = u32((<i64>a >> 32) * (<i64>b >> 32) + (mm >> 32) + (ww >> 32) != <i64>r >> 63);'
    /** By an immediate, which fits 32 bits: the high 64 of 96 bits tell. */
    const productByImmediate =
      z === 4
        ? product
        : 'const r: u64 = a * b; const hh: i64 = (<i64>a >> 32) * <i64>b + ((<i64>(a & 0xffffffff) * <i64>b) >> 32); const o: u32 = u32(hh != <i64><i32>hh);'
    const overflow = setResult(z, 'r', 'o | (o << 11)')
    const imul = (name: string, memory: boolean, code: string): void =>
      flagged(`${name}_${memory ? 'm' : 'r'}_${z}`, z, overflow, (as, flags) => {
        const all = [code, `store<u64>(${reg}, <u64>r);`, flags, done]
        if (memory) reads(as, z, ...all)
        else put(as, ...all)
      })
    imul('IMUL2', false, `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(${rm}); ${product}`)
    imul('IMUL2', true, `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(h); ${product}`)
    imul('IMUL3', false, `const a: ${u} = load<${u}>(${rm}), b: ${u} = <${u}>load<u64>(op, OP_IMM); ${productByImmediate}`)
    imul('IMUL3', true, `const a: ${u} = load<${u}>(h), b: ${u} = <${u}>load<u64>(op, OP_IMM); ${productByImmediate}`)
    put(`BSWAP_${z}`, `store<u64>(${rm}, <u64>bswap<${u}>(load<${u}>(${rm})));`, done)
    // CWDE and CDQE, CDQ and CQO.
    put(`CBW_${z}`, z === 4 ? 'store<u64>(s, <u64><u32><i32>load<i16>(s));' : 'store<u64>(s, <u64><i64>load<i32>(s));', done)
    put(`CWD_${z}`, z === 4 ? 'store<u64>(s, <u64><u32>(load<i32>(s) >> 31), 16);' : 'store<u64>(s, <u64>(load<i64>(s) >> 63), 16);', done)
    put(
      `XCHGAX_${z}`,
      `const a: ${u} = load<${u}>(s), b: ${u} = load<${u}>(${rm}); store<u64>(s, <u64>b); store<u64>(${rm}, <u64>a);`,
      done,
    )
    put(
      `XCHG_r_${z}`,
      `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(${rm}); store<u64>(${reg}, <u64>b); store<u64>(${rm}, <u64>a);`,
      done,
    )

    // Stack. The 32-bit forms are for flat 32-bit stacks; anything else goes to the cold handler.
    const flat =
      z === 4
        ? (cold: string): string =>
            `if ((load<u32>(s, CPU_MODE) & (MODE_FLAT | MODE_SS32)) != (MODE_FLAT | MODE_SS32)) ${hot ? miss : `{ ${cold} }`}`
        : (): string => ''
    const viaCold = (handler: string): string =>
      `store<u32>(s, <u32>op, CPU_OP); const l = ${handler}(s, op); if (l) { store<u32>(s, l, CPU_LEAVE); break } ${done}`
    const sp = z === 8 ? 'load<u64>(s, 32)' : '<u64>load<u32>(s, 32)'
    const down = z === 8 ? `const va: u64 = ${sp} - 8;` : `const va: u64 = (load<u64>(s, 32) - 4) & 0xffffffff;`
    const push = (value: string): string =>
      `${down} const v: ${u} = ${value}; ${entry} ${hot ? '' : 'let c: u32 = 0;'} if (load<u64>(t, TLB_WRITE) == ${page(z)}) store<${u}>(${host}, v); else ${hot ? missed(z, true) : `{ ${noteOp} c = slowWrite(s, STACK_OP, va, ${z}, <u64>v); if (c && c != LEAVE_NEXT) break }`} store<u64>(s, va, 32);`
    put(`PUSH_r_${z}`, flat(viaCold('pushRegister')), push(`load<${u}>(${rm})`), committed)
    put(`PUSH_i_${z}`, flat(viaCold('pushImmediate')), push(`<${u}>load<u64>(op, OP_IMM)`), committed)
    put(
      `POP_r_${z}`,
      flat(viaCold('popRegister')),
      `const va: u64 = ${sp};`,
      readable(z, 'STACK_OP'),
      `const v: ${u} = load<${u}>(h); store<u64>(s, ${z === 8 ? 'va + 8' : '<u64>(<u32>va + 4)'}, 32); store<u64>(${rm}, <u64>v);`,
      done,
    )

    const leaveCall = hot ? '' : 'if (c) { store<u32>(s, LEAVE_BRANCH, CPU_LEAVE); break }'
    const branchCold = (handler: string): string => `store<u32>(s, <u32>op, CPU_OP); store<u32>(s, ${handler}(s, op), CPU_LEAVE); break`
    const next = `<${u}>(load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT))`
    /** A target that is not canonical (or, with LA57, beyond 48 bits) is for the cold handler: the branch itself faults. */
    const near = (target: string, cold: string): string =>
      z === 8 ? `if ((${target} + 0x800000000000) >> 48) ${hot ? miss : `{ ${branchCold(cold)} }`}` : ''
    put(
      `CALL_rel_${z}`,
      flat(branchCold('callRelative')),
      push(next),
      jump('load<u64>(op, OP_IMM)'),
      leaveCall,
      chain('OP_DISP', 1),
      'break',
    )
    put(
      `CALL_r_${z}`,
      flat(branchCold('callRm')),
      `const target: ${u} = load<${u}>(${rm});`,
      near('target', 'callRm'),
      push(next),
      'store<u64>(s, <u64>target, CPU_RIP);',
      leaveCall,
      'break',
    )
    put(
      `RET_${z}`,
      flat(branchCold('ret')),
      `const va: u64 = ${sp};`,
      readable(z, 'STACK_OP'),
      `const target: ${u} = load<${u}>(h);`,
      near('target', 'ret'),
      `store<u64>(s, <u64>target, CPU_RIP); store<u64>(s, ${z === 8 ? 'va + 8' : '<u64>(<u32>va + 4)'}, 32); break`,
    )
    put(
      `JMP_r_${z}`,
      flat(branchCold('jumpRm')),
      `const target: ${u} = load<${u}>(${rm});`,
      near('target', 'jumpRm'),
      'store<u64>(s, <u64>target, CPU_RIP); break',
    )
  }

  put('SETCC_r', condition, `store<u8>(${rm}, u8(yes));`, done)
  put('NOP', done)

  const taken = `{ ${jump('load<u64>(op, OP_IMM)')} ${chain('OP_DISP', 1)} }`
  const notTaken = `{ ${jump('<u64>load<u16>(op, OP_NEXT)')} ${chain('OP_EXTRA', 2)} }`
  put('JMP_rel', taken, 'break')
  /** End of a block that has no branch of its own: the next instruction in line. */
  put('CONTINUE', taken, 'break')
  /** End of a block that was cut to the budget. */
  put('PARTIAL_END', hot ? miss : `${jump('load<u64>(op, OP_IMM)')} break`)

  for (let cc = 0; cc < 16; cc++) {
    const no = (cc & 1) === 1 ? '!' : ''
    put(
      `JCC_${cc}`,
      hot ? `${KIND} let yes: bool = false; ${test(cc >> 1)}` : `const yes: bool = condition(s, ${cc & 14});`,
      `if (${no}yes) ${taken} else ${notTaken}`,
      'break',
    )
  }

  // An operation and the conditional jump behind it in one go: the op stays where it is and its jump behind it, so that counts,
  // cuts and faults see two instructions; only the dispatch between them and the way of the flags through memory are saved.
  // Conditions in the order of test(); one that `ordinary` covers goes to the jump's own handler.
  const ordinary = 'continue;'
  for (const z of [1, 4, 8] as const) {
    const u = U[z]
    const i = I[z]
    const zero = 'yes = r == 0;'
    const sign = `yes = <${i}>r < 0;`
    const jump = `if (yes) ${taken} else ${notTaken} break`
    const any = (conditions: readonly string[]): string =>
      `op += 32; const cc: u32 = <u32>load<u16>(op) - JCC; let yes: bool = false; switch (cc >> 1) { ${conditions.map((c, k) => `case ${k}: { ${c} break }`).join(' ')} default: break } if (cc & 1) yes = !yes; ${jump}`
    const onZero = `op += 32; const yes: bool = (r == 0) != (((<u32>load<u16>(op) ^ JCC) & 1) != 0); ${jump}`
    const fuse = (name: string, form: string, code: string, conditions: readonly string[] | undefined): void => {
      const plain = handlers.get(`${name}_${form}_${z}`) ?? ''
      put(`${name}Z_${form}_${z}`, hot ? `${code} ${onZero}` : plain)
      if (conditions) put(`${name}J_${form}_${z}`, hot ? `${code} ${any(conditions)}` : plain)
    }
    const minus = [ordinary, 'yes = a < b;', zero, 'yes = a <= b;', sign, ordinary, `yes = <${i}>a < <${i}>b;`, `yes = <${i}>a <= <${i}>b;`]
    const bits = ['yes = false;', 'yes = false;', zero, zero, sign, ordinary, sign, `yes = <${i}>r <= 0;`]
    for (const [name, conditions] of [
      ['CMP', minus],
      ['TEST', bits],
      ['SUB', undefined],
      ['AND', undefined],
      ['ADD', undefined],
    ] as const) {
      const f = alu[name]
      if (!f || (f.writes && z === 1)) continue
      for (const form of ['rr', 'ri'] as const) {
        const b = form === 'rr' ? `load<${u}>(${reg})` : `<${u}>load<u64>(op, OP_IMM)`
        const set = f.writes ? setRegister(z, rm, 'r') : ''
        fuse(name, form, `const a: ${u} = load<${u}>(${rm}); const b: ${u} = ${b}; ${f.compute(z)} ${set} ${f.flags(z)}`, conditions)
      }
    }
    if (z === 1) continue
    const flags = `${keepCarry} ${kind('FLAG_DEC', z)} ${result('r')}`
    fuse('DEC', 'r', `const a: ${u} = load<${u}>(${rm}); const r: ${u} = a - 1; ${setRegister(z, rm, 'r')} ${flags}`, undefined)
  }
  const inOrder = [...handlers].toSorted(([a], [b]) => Number(accesses.has(a)) - Number(accesses.has(b)))
  return { code: new Map(inOrder), accesses }
}

const fast = build(true)
/** By name, in the order of their ids, memory forms last; the same names in both. */
export const hotHandlers = fast.code
export const slowHandlers = build(false).code

/** In the order of the ids: what the memory forms access at `h`. */
export const accesses = [...hotHandlers.keys()].flatMap((name) => fast.accesses.get(name) ?? [])

/** Quiet form by name of the form that sets flags. */
export const quietForms: ReadonlyMap<string, string> = new Map(
  [...hotHandlers.keys()].filter((name) => hotHandlers.has(quietName(name))).map((name) => [name, quietName(name)]),
)

const quietNames = new Set(quietForms.values())
/**
 * What the flags in front of an instruction are to it. NEEDS: it reads or keeps some, or may fault or leave the block, so all must
 * be there. IGNORES: it neither reads nor writes any. OVERWRITES: all of them; OVERWRITES_BY_COUNT: unless its immediate count is 0.
 */
export const flagUses = ['NEEDS', 'IGNORES', 'OVERWRITES', 'OVERWRITES_BY_COUNT'] as const
export function flagUse(name: string): (typeof flagUses)[number] {
  const [family = '', form = ''] = name.replace(/[ZJ]_/, '_').split('_')
  if (fast.accesses.has(name)) return 'NEEDS'
  if (quietNames.has(name)) return 'IGNORES'
  if (/^(MOV|MOVZX8|MOVZX16|MOVSX8|MOVSX16|MOVSXD|LEA|BSWAP|CBW|CWD|XCHG|XCHGAX|NOP|NOT)$/.test(family)) return 'IGNORES'
  if (/^(SHL|SHR|SAR)$/.test(family) && form === 'i') return 'OVERWRITES_BY_COUNT'
  return quietArithmetic.has(family) || /^(CMP|TEST|NEG|IMUL2|IMUL3)$/.test(family) ? 'OVERWRITES' : 'NEEDS'
}
/** fast(): `va` of a memory form; what is not simple leaves by `miss`. */
export const fastAddress = `let va: u64 = ${offset}; const k = load<u8>(op, OP_EA); if (k) { if (k == 1) va = <u64><u32>va; else if (k == 3) va += load<u64>(s + (<usize>load<u8>(op, OP_SEG) << 4), CPU_SEGMENTS); else ${miss} }`

/** The handlers that an op gets when a conditional jump follows it in its block: JZ or JNZ, another. */
export const fusedNames: ReadonlyMap<string, { readonly zero: string; readonly other: string | undefined }> = new Map(
  [...hotHandlers.keys()]
    .filter((name) => name.includes('Z_'))
    .map((zero) => {
      const other = zero.replace('Z_', 'J_')
      return [zero.replace('Z_', '_'), { zero, other: hotHandlers.has(other) ? other : undefined }] as const
    }),
)

/** Name of the hot handler for a row at an operand size and form; undefined = the row's cold handler. */
export function hotName(row: Opcode, size: Size, memory: boolean): string | undefined {
  const name = nameFor(row, size, memory)
  return name !== undefined && hotHandlers.has(name) ? name : undefined
}

function nameFor(row: Opcode, z: Size, memory: boolean): string | undefined {
  const {
    mnemonic: m,
    operands: [o0 = '', o1 = ''],
  } = row
  if (row.handler === undefined && (arithmetic.has(m) || m === 'MOV')) {
    if (o1.startsWith('I')) return `${m}_${memory ? 'mi' : 'ri'}_${z}`
    return o0.startsWith('G') ? `${m}_${memory ? 'rm' : 'gr'}_${z}` : `${m}_${memory ? 'mr' : 'rr'}_${z}`
  }
  const form = memory ? 'm' : 'r'
  switch (row.handler) {
    case undefined:
      break
    case 'lea':
      return `LEA_${z}`
    case 'movzx8':
    case 'movzx16':
    case 'movsx8':
    case 'movsx16':
    case 'movsxd':
      return `${row.handler.toUpperCase()}_${form}_${z}`
    case 'cmov':
      return `CMOV_${form}_${z}`
    case 'setcc':
      return memory ? undefined : 'SETCC_r'
    case 'shift':
      return memory ? undefined : `${m}_${o1 === 'CL' ? 'c' : 'i'}_${z}`
    case 'imul2':
      return `IMUL2_${form}_${z}`
    case 'imul3':
      return `IMUL3_${form}_${z}`
    case 'bswap_':
      return `BSWAP_${z}`
    case 'cbw':
      return `CBW_${z}`
    case 'cwd':
      return `CWD_${z}`
    case 'xchgAx':
      return `XCHGAX_${z}`
    case 'xchg':
      return memory ? undefined : `XCHG_r_${z}`
    case 'pushRegister':
      return `PUSH_r_${z}`
    case 'pushImmediate':
      return `PUSH_i_${z}`
    case 'popRegister':
      return `POP_r_${z}`
    case 'callRelative':
      return `CALL_rel_${z}`
    case 'callRm':
      return memory ? undefined : `CALL_r_${z}`
    case 'jumpRm':
      return memory ? undefined : `JMP_r_${z}`
    case 'ret':
      return row.operands.length > 0 ? undefined : `RET_${z}`
    default:
      return undefined
  }
  if (m === 'INC' || m === 'DEC' || m === 'NEG' || m === 'NOT') return `${m}_${form}_${z}`
  if (m === 'NOP') return 'NOP'
  if (m === 'JMP') return 'JMP_rel'
  if (m.startsWith('J')) return `JCC_${row.opcode & 15}`
  return undefined
}
