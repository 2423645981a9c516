/**
 * The handlers that live in the loop's switch: AssemblyScript text, specialised by operand size and form.
 * One template per instruction family; a row of the opcode map finds its handler by name.
 *
 * Inside a handler: `s` CPU structure, `op` current op, `n` next block (0 = not known). `continue` goes
 * on with the next op after `op += 32`; `break` leaves the block (CPU_LEAVE says why; 0 = branch taken,
 * CPU_RIP set). Memory forms check the L1 TLB in place and call the slow path on a miss.
 */
import type { Opcode } from '../spec/opcodes/index.ts'

export type Size = 1 | 2 | 4 | 8
export const sizes: readonly Size[] = [1, 2, 4, 8]
const U: Record<Size, string> = { 1: 'u8', 2: 'u16', 4: 'u32', 8: 'u64' }
const I: Record<Size, string> = { 1: 'i8', 2: 'i16', 4: 'i32', 8: 'i64' }
const shiftOf = (size: Size): number => 64 - size * 8

const handlers = new Map<string, string>()
const put = (name: string, ...code: string[]): void => {
  handlers.set(name, code.join(' '))
}

const done = 'op += 32; continue'
const rm = 's + <usize>load<u8>(op, OP_RM)'
const reg = 's + <usize>load<u8>(op, OP_REG)'
const offset =
  'load<u64>(s + <usize>load<u8>(op, OP_BASE)) + (load<u64>(s + <usize>load<u8>(op, OP_INDEX)) << <u64>load<u8>(op, OP_SCALE)) + <u64><i64>load<i32>(op, OP_DISP)'

/** `va` of the memory operand. */
const address = (size: Size, write: boolean): string =>
  `let va: u64 = ${offset}; const k = load<u8>(op, OP_EA); if (k) { if (k == 1) va = <u64><u32>va; else { store<u32>(s, <u32>op, CPU_OP); va = eaGeneral(s, op, va, ${size}, ${write}); if (load<u32>(s, CPU_LEAVE)) break } }`
const entry = 'const t: usize = <usize>load<u32>(s, CPU_TLB_BASE) + ((<usize>va >> 7) & 0x7fe0);'
const page = (size: Size): string => (size === 1 ? '(va & ~(<u64>0xfff))' : `((va + ${size - 1}) & ~(<u64>0xfff))`)
const host = '<usize>(<u32>va + load<u32>(t, TLB_ADDEND))'
/** The slow path must know the op: whether a store hit the running block, and the exact time of MMIO, depend on it. */
const noteOp = 'store<u32>(s, <u32>op, CPU_OP);'
/** `h`: address of readable bytes at `va`. */
const readable = (size: Size, op = 'op'): string =>
  `${entry} let h: usize; if (load<u64>(t, TLB_READ) == ${page(size)}) h = ${host}; else { ${noteOp} h = slowRead(s, ${op}, va, ${size}); if (!h) break }`
/** `h`: address of bytes to be modified in place; then `stored`. */
const modifiable = (size: Size): string =>
  `${entry} let h: usize; if (load<u64>(t, TLB_WRITE) == ${page(size)}) h = ${host}; else { ${noteOp} h = slowModify(s, op, va, ${size}); if (!h) break }`
const commit = 'let c: u32 = 0; if (h == s + CPU_SCRATCH) { c = commitModify(s, op); if (c && c != LEAVE_NEXT) break }'
const committed = `if (c) break; ${done}`
/** Stores `value` at `va`; leaves when the slow path says so. */
const write = (size: Size, value: string): string =>
  `${entry} if (load<u64>(t, TLB_WRITE) == ${page(size)}) store<${U[size]}>(${host}, ${value}); else { ${noteOp} if (slowWrite(s, op, va, ${size}, <u64>${value})) break }`
const setRegister = (size: Size, where: string, value: string): string =>
  size === 4 ? `store<u64>(${where}, <u64>${value});` : `store<${U[size]}>(${where}, ${value});`

const kind = (name: string, size: Size): string => `store<u64>(s, <u64>${name} | (<u64>${shiftOf(size)} << 32), CPU_FLAG_KIND);`
const result = (r: string): string => `store<u64>(s, <u64>${r}, CPU_FLAG_RESULT);`
const operands = 'store<u64>(s, <u64>a, CPU_FLAG_A); store<u64>(s, <u64>b, CPU_FLAG_B);'

/** INC and DEC keep CF: it goes to FLAG_A. */
const keepCarry =
  'const kc = load<u32>(s, CPU_FLAG_KIND); store<u64>(s, kc == FLAG_SUB ? u64(load<u64>(s, CPU_FLAG_A) < load<u64>(s, CPU_FLAG_B)) : kc == FLAG_LOGIC ? 0 : <u64>carry(s), CPU_FLAG_A);'
/** ZF SF PF from `r`, CF OF AF as bits. */
const setResult = (z: Size, r: string, bits: string): string =>
  `${kind('FLAG_RESULT_ONLY', z)} ${result(r)} store<u64>(s, <u64>(${bits}), CPU_FLAG_A);`
/** Rotates keep ZF SF PF AF. */
const rotated = (bits: string): string =>
  `if (load<u32>(s, CPU_FLAG_KIND) == FLAG_RESULT_ONLY) store<u64>(s, (load<u64>(s, CPU_FLAG_A) & 16) | <u64>(${bits}), CPU_FLAG_A); else rotateFlags(s, ${bits});`

interface Alu {
  readonly compute: (size: Size) => string
  readonly flags: (size: Size) => string
  readonly writes: boolean
}
const logic = (expression: string): Alu => ({
  compute: (z) => `const r: ${U[z]} = ${expression};`,
  flags: (z) => `${kind('FLAG_LOGIC', z)} ${result('r')}`,
  writes: true,
})
const withCarry = (sign: '+' | '-'): Alu => ({
  compute: (z) => `const ci: ${U[z]} = <${U[z]}>carry(s); const r: ${U[z]} = a ${sign} b ${sign} ci;`,
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

for (const [name, f] of Object.entries(alu)) {
  for (const z of sizes) {
    const u = U[z]
    const a = (where: string): string => `const a: ${u} = load<${u}>(${where});`
    const imm = `const b: ${u} = <${u}>load<u64>(op, OP_IMM);`
    const finish = (where: string): string => `${f.compute(z)} ${f.writes ? setRegister(z, where, 'r') : ''} ${f.flags(z)} ${done}`
    const inMemory = (b: string): string =>
      f.writes
        ? `${address(z, true)} ${modifiable(z)} const a: ${u} = load<${u}>(h); ${b} ${f.compute(z)} store<${u}>(h, r); ${commit} ${f.flags(z)} ${committed}`
        : `${address(z, false)} ${readable(z)} const a: ${u} = load<${u}>(h); ${b} ${f.compute(z)} ${f.flags(z)} ${done}`
    put(`${name}_rr_${z}`, a(rm), `const b: ${u} = load<${u}>(${reg});`, finish(rm))
    put(`${name}_gr_${z}`, a(reg), `const b: ${u} = load<${u}>(${rm});`, finish(reg))
    put(`${name}_ri_${z}`, a(rm), imm, finish(rm))
    put(`${name}_rm_${z}`, address(z, false), readable(z), a(reg), `const b: ${u} = load<${u}>(h);`, finish(reg))
    put(`${name}_mr_${z}`, inMemory(`const b: ${u} = load<${u}>(${reg});`))
    put(`${name}_mi_${z}`, inMemory(imm))
  }
}

for (const z of sizes) {
  const u = U[z]
  put(`MOV_rr_${z}`, setRegister(z, rm, `load<${u}>(${reg})`), done)
  put(`MOV_gr_${z}`, setRegister(z, reg, `load<${u}>(${rm})`), done)
  put(`MOV_ri_${z}`, setRegister(z, rm, `<${u}>load<u64>(op, OP_IMM)`), done)
  put(`MOV_rm_${z}`, address(z, false), readable(z), setRegister(z, reg, `load<${u}>(h)`), done)
  put(`MOV_mr_${z}`, address(z, true), `const v: ${u} = load<${u}>(${reg});`, write(z, 'v'), done)
  put(`MOV_mi_${z}`, address(z, true), `const v: ${u} = <${u}>load<u64>(op, OP_IMM);`, write(z, 'v'), done)

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
    put(`${name}_r_${z}`, `const a: ${u} = load<${u}>(${rm}); ${compute} ${setRegister(z, rm, 'r')} ${flags}`, done)
    put(
      `${name}_m_${z}`,
      address(z, true),
      modifiable(z),
      `const a: ${u} = load<${u}>(h); ${compute} store<${u}>(h, r); ${commit} ${flags} ${committed}`,
    )
  }
}

for (const z of [4, 8] as const) {
  const u = U[z]
  put(
    `LEA_${z}`,
    `const v: u64 = ${offset};`,
    z === 8
      ? `store<u64>(${reg}, load<u8>(op, OP_EA) == 1 ? <u64><u32>v : v);`
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
    put(`${name}_m_${z}`, address(from, false), readable(from), `store<u64>(${reg}, <u64>${value('h')});`, done)
  }
  const cc = 'load<u32>(op, OP_EXTRA) & 15'
  put(`CMOV_r_${z}`, `store<u64>(${reg}, <u64>(condition(s, ${cc}) ? load<${u}>(${rm}) : load<${u}>(${reg})));`, done)
  put(
    `CMOV_m_${z}`,
    address(z, false),
    readable(z),
    `const v: ${u} = load<${u}>(h);`,
    `store<u64>(${reg}, <u64>(condition(s, ${cc}) ? v : load<${u}>(${reg})));`,
    done,
  )
  const bits = z * 8
  const shifts: Record<string, string> = {
    SHL: `const r: ${u} = a << c; ${setResult(z, 'r', `0x10 | <u32>(a >> (${bits} - c) & 1) | (<u32>((r >> ${bits - 1}) ^ (a >> (${bits} - c) & 1)) << 11)`)}`,
    SHR: `const r: ${u} = a >> c; ${setResult(z, 'r', `0x10 | <u32>(a >> (c - 1) & 1) | (<u32>(r >> ${bits - 2}) << 11)`)}`,
    SAR: `const r: ${u} = <${u}>(<${I[z]}>a >> <${I[z]}>c); ${setResult(z, 'r', `0x10 | (<u32>(<${I[z]}>a >> <${I[z]}>(c - 1)) & 1)`)}`,
    ROL: `const r: ${u} = rotl<${u}>(a, c); ${rotated(`<u32>(r & 1) | (<u32>((r >> ${bits - 1}) ^ (r & 1)) << 11)`)}`,
    ROR: `const r: ${u} = rotr<${u}>(a, c); ${rotated(`<u32>(r >> ${bits - 1}) | (<u32>((r >> ${bits - 1}) ^ (r >> ${bits - 2} & 1)) << 11)`)}`,
  }
  for (const [name, body] of Object.entries(shifts)) {
    const put1 = (form: string, count: string): void =>
      put(
        `${name}_${form}_${z}`,
        `const c: ${u} = <${u}>(${count} & ${bits - 1}); const a: ${u} = load<${u}>(${rm}); if (c) { ${body} store<u64>(${rm}, <u64>r) } else store<u64>(${rm}, <u64>a);`,
        done,
      )
    put1('i', '<u32>load<u8>(op, OP_IMM)')
    put1('c', '<u32>load<u8>(s, 8)')
  }
  const product =
    z === 4
      ? 'const p: i64 = <i64><i32>a * <i64><i32>b; const r: u32 = <u32>p; const o: u32 = u32(p != <i64><i32>r);'
      : 'const r: u64 = a * b; const o: u32 = u32(mulOverflows(<i64>a, <i64>b));'
  const imul = `${product} store<u64>(${reg}, <u64>r); ${setResult(z, 'r', 'o | (o << 11)')}`
  put(`IMUL2_r_${z}`, `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(${rm}); ${imul}`, done)
  put(`IMUL2_m_${z}`, address(z, false), readable(z), `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(h); ${imul}`, done)
  put(`IMUL3_r_${z}`, `const a: ${u} = load<${u}>(${rm}), b: ${u} = <${u}>load<u64>(op, OP_IMM); ${imul}`, done)
  put(`IMUL3_m_${z}`, address(z, false), readable(z), `const a: ${u} = load<${u}>(h), b: ${u} = <${u}>load<u64>(op, OP_IMM); ${imul}`, done)
  put(`BSWAP_${z}`, `store<u64>(${rm}, <u64>bswap<${u}>(load<${u}>(${rm})));`, done)
  // CWDE and CDQE, CDQ and CQO.
  put(`CBW_${z}`, z === 4 ? 'store<u64>(s, <u64><u32><i32>load<i16>(s));' : 'store<u64>(s, <u64><i64>load<i32>(s));', done)
  put(`CWD_${z}`, z === 4 ? 'store<u64>(s, <u64><u32>(load<i32>(s) >> 31), 16);' : 'store<u64>(s, <u64>(load<i64>(s) >> 63), 16);', done)
  put(`XCHGAX_${z}`, `const a: ${u} = load<${u}>(s), b: ${u} = load<${u}>(${rm}); store<u64>(s, <u64>b); store<u64>(${rm}, <u64>a);`, done)
  put(
    `XCHG_r_${z}`,
    `const a: ${u} = load<${u}>(${reg}), b: ${u} = load<${u}>(${rm}); store<u64>(${reg}, <u64>b); store<u64>(${rm}, <u64>a);`,
    done,
  )

  // Stack. The 32-bit forms are for flat 32-bit stacks; anything else goes to the cold handler.
  const flat =
    z === 4
      ? (cold: string): string => `if ((load<u32>(s, CPU_MODE) & (MODE_FLAT | MODE_SS32)) != (MODE_FLAT | MODE_SS32)) { ${cold} }`
      : (): string => ''
  const viaCold = (handler: string): string =>
    `store<u32>(s, <u32>op, CPU_OP); const l = ${handler}(s, op); if (l) { store<u32>(s, l, CPU_LEAVE); break } ${done}`
  const sp = z === 8 ? 'load<u64>(s, 32)' : '<u64>load<u32>(s, 32)'
  const down = z === 8 ? `const va: u64 = ${sp} - 8;` : `const va: u64 = <u64>(load<u32>(s, 32) - 4);`
  const push = (value: string): string =>
    `${down} const v: ${u} = ${value}; ${entry} let c: u32 = 0; if (load<u64>(t, TLB_WRITE) == ${page(z)}) store<${u}>(${host}, v); else { ${noteOp} c = slowWrite(s, STACK_OP, va, ${z}, <u64>v); if (c && c != LEAVE_NEXT) break } store<u64>(s, va, 32);`
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

  const leaveCall = 'if (c) { store<u32>(s, LEAVE_BRANCH, CPU_LEAVE); break }'
  const branchCold = (handler: string): string => `store<u32>(s, <u32>op, CPU_OP); store<u32>(s, ${handler}(s, op), CPU_LEAVE); break`
  const next = `<${u}>(load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT))`
  put(
    `CALL_rel_${z}`,
    flat(branchCold('callRelative')),
    push(next),
    'store<u64>(s, (load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM)) & load<u64>(s, CPU_RIP_MASK), CPU_RIP);',
    leaveCall,
    'n = <usize>load<u32>(op, OP_DISP); if (!n && (load<u8>(op, OP_SCALE) & 1)) store<u32>(s, <u32>op + <u32>OP_DISP, CPU_LINK); break',
  )
  put(
    `CALL_r_${z}`,
    flat(branchCold('callRm')),
    `const target: ${u} = load<${u}>(${rm});`,
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
    `store<u64>(s, <u64>load<${u}>(h), CPU_RIP); store<u64>(s, ${z === 8 ? 'va + 8' : '<u64>(<u32>va + 4)'}, 32); break`,
  )
  put(`JMP_r_${z}`, `store<u64>(s, <u64>load<${u}>(${rm}), CPU_RIP); break`)
}

put('SETCC_r', `store<u8>(${rm}, <u8>condition(s, load<u32>(op, OP_EXTRA) & 15));`, done)
put('NOP', done)

const taken =
  '{ store<u64>(s, (load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM)) & load<u64>(s, CPU_RIP_MASK), CPU_RIP); n = <usize>load<u32>(op, OP_DISP); if (!n && (load<u8>(op, OP_SCALE) & 1)) store<u32>(s, <u32>op + <u32>OP_DISP, CPU_LINK) }'
const notTaken =
  '{ store<u64>(s, (load<u64>(s, CPU_RIP) + <u64>load<u16>(op, OP_NEXT)) & load<u64>(s, CPU_RIP_MASK), CPU_RIP); n = <usize>load<u32>(op, OP_EXTRA); if (!n && (load<u8>(op, OP_SCALE) & 2)) store<u32>(s, <u32>op + <u32>OP_EXTRA, CPU_LINK) }'
put('JMP_rel', taken, 'break')
/** End of a block that has no branch of its own: the next instruction in line. */
put('CONTINUE', taken, 'break')
/** End of a block that was cut to the budget. */
put('PARTIAL_END', 'store<u64>(s, (load<u64>(s, CPU_RIP) + load<u64>(op, OP_IMM)) & load<u64>(s, CPU_RIP_MASK), CPU_RIP); break')

const sub = 'const kd = load<u32>(s, CPU_FLAG_KIND);'
const ab = 'load<u64>(s, CPU_FLAG_A)'
const bb = 'load<u64>(s, CPU_FLAG_B)'
const signed = `const sh: u64 = <u64>load<u32>(s, CPU_FLAG_SHIFT);`
const isZero = '(kd == FLAG_EAGER ? (load<u32>(s, CPU_EFLAGS) & 0x40) != 0 : load<u64>(s, CPU_FLAG_RESULT) == 0)'
const tests: readonly (readonly [string, string])[] = [
  ['', 'overflow(s)'],
  [sub, `(kd == FLAG_SUB ? ${ab} < ${bb} : carry(s) != 0)`],
  [sub, isZero],
  [sub, `(kd == FLAG_SUB ? ${ab} <= ${bb} : (carry(s) != 0 || zero(s)))`],
  [
    sub,
    `(kd == FLAG_EAGER ? (load<u32>(s, CPU_EFLAGS) & 0x80) != 0 : <i64>(load<u64>(s, CPU_FLAG_RESULT) << <u64>load<u32>(s, CPU_FLAG_SHIFT)) < 0)`,
  ],
  ['', 'parity(s)'],
  [`${sub} ${signed}`, `(kd == FLAG_SUB ? <i64>(${bb} << sh) > <i64>(${ab} << sh) : less(s))`],
  [`${sub} ${signed}`, `(kd == FLAG_SUB ? <i64>(${ab} << sh) <= <i64>(${bb} << sh) : (zero(s) || less(s)))`],
]
for (let cc = 0; cc < 16; cc++) {
  const [before, test] = tests[cc >> 1] as readonly [string, string]
  put(`JCC_${cc}`, before, `if (${(cc & 1) === 0 ? test : `!${test}`}) ${taken} else ${notTaken}`, 'break')
}

/** Name of the hot handler for a row at an operand size and form; undefined = the row's cold handler. */
export function hotName(row: Opcode, size: Size, memory: boolean): string | undefined {
  const name = nameFor(row, size, memory)
  return name !== undefined && handlers.has(name) ? name : undefined
}

function nameFor(row: Opcode, z: Size, memory: boolean): string | undefined {
  const {
    mnemonic: m,
    operands: [o0 = '', o1 = ''],
  } = row
  if (row.handler === undefined && (m in alu || m === 'MOV')) {
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

export const hotHandlers: ReadonlyMap<string, string> = handlers
