/** Writes the execution loop: one switch over the hot handlers, cold handlers through the function table. */
import { MISSED, quickFill } from './generate-fill.ts'
import { accesses, fastAddress, hotHandlers, slowHandlers } from './hot-handlers.ts'

export const hotIds: ReadonlyMap<string, number> = new Map([...hotHandlers.keys()].map((name, id) => [name, id]))

/** First id of the cold handlers. */
export const coldBase = hotIds.size

/** Leaves fast() with the code of the miss. */
const missed = `{ store<u64>(s, va, VCPU_MMU + MMU_MISS); store<u32>(s, <u32>op, CPU_SAVED_OP); return (((<usize>access & 7) + 1) << 2) + 1 + (<usize>access >> 3) }`

/** Ids from here are memory forms. */
export const memoryBase = coldBase - accesses.length

const cases = (handlers: ReadonlyMap<string, string>, from = 0, to = coldBase): string =>
  [...handlers]
    .map(([name, code], id) => `      case ${id}: { // ${name}\n        ${code}\n      }`)
    .slice(from, to)
    .join('\n')

export function executeSource(): string {
  return `// Generated from the opcode map by tools/generate-execute.ts. Do not edit.
import {
  BLOCK_BYTES, BLOCK_COUNT, COLD_TABLE, CPU_BLOCK, CPU_BUDGET, CPU_EFLAGS, CPU_FLAG_A, CPU_FLAG_B, CPU_FLAG_KIND, CPU_FLAG_RESULT, CPU_FLAG_SHIFT, CPU_ICOUNT,
  CPU_JUMP_KEY, CPU_LEAVE, CPU_LINK, CPU_MODE, CPU_OP, CPU_RIP, CPU_RIP_MASK, CPU_SAVED_OP, CPU_SCRATCH, CPU_SEGMENTS, CPU_TLB_BASE, FLAG_ADD, FLAG_DEC,
  FLAG_EAGER, FLAG_INC, FLAG_LOGIC, FLAG_RESULT_ONLY, FLAG_SUB, LEAVE_BRANCH, LEAVE_NEXT, MMU_CLEAN, MMU_FILLS, MMU_FILL_LIST, MMU_MISS, MMU_QUICK_BIT, MMU_QUICK_GLOBAL,
  MMU_QUICK_LOCAL, MMU_QUICK_NOW, MMU_STAMP, MMU_USED, MODE_CS64, MODE_CS_MASK, MODE_FLAT, MODE_SS32, OP_BASE, OP_DISP,
  ACCESS_WRITE, OP_ACCESS, OP_EA, OP_EXTRA, OP_FLAGS, OP_IMM, OP_INDEX, OP_NEXT, OP_REG, OP_RM, OP_SCALE, OP_SEG, TLB_ADDEND, TLB_EXEC, TLB_READ, TLB_WRITE, VCPU_JUMP, VCPU_MMU, VCPU_PARTIAL, VCPU_TLB2, VCPU_TLB_DENSE,
} from './layout'
import { condition, rotateFlags } from '../cpu/flags'
import { quickWalk } from '../memory/quick'
import { FILL_LIST_MAX } from '../memory/tlb'
import { commitModify, slowModify, slowRead, slowWrite } from '../memory/access'
import { eaGeneral, STACK_OP } from '../execute/operands'
import { callRelative, callRm, jumpRm, popRegister, pushImmediate, pushRegister, ret } from '../execute/basic'
import { refill } from '../execute/refill'
import { boundary, overBudget, quickLookup, resume } from '../execute/boundary'

const coldBase: u32 = ${coldBase}
/** fast() returns the code of a TLB miss at MMU_MISS (tools/generate-fill.ts): at most this. */
const MISSED: usize = ${MISSED}
const NONE: u64 = ~0
const JCC: u32 = ${hotIds.get('JCC_0')}

/** Runs the vCPU until CPU_STOP_REASON says why it stopped. */
export function execute(s: usize): void {
  let n = resume(s)
  while (n) {
    let count: u64 = load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT)
    while (count > atomic.load<u64>(s, CPU_BUDGET)) {
      n = overBudget(s, n)
      if (!n) return
      count = load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT)
    }
    store<u64>(s, count, CPU_ICOUNT)
    store<u32>(s, <u32>n, CPU_BLOCK)
    store<u32>(s, <u32>n + 32, CPU_SAVED_OP)
    if (n == s + VCPU_PARTIAL && load<u32>(n, BLOCK_BYTES) != 0) {
      // Single-stepped: the fast function would find the next block by itself, past what follows the step.
      do n = slow(s)
      while (n == 1)
      n = boundary(s, <usize>load<u32>(s, CPU_BLOCK), <usize>load<u32>(s, CPU_SAVED_OP))
      continue
    }
    for (;;) {
      n = fast(s)
      if (n - 2 <= MISSED - 2) {
        // A filled TLB serves the op: it begins again.
        if (quickWalk(s, load<u64>(s, VCPU_MMU + MMU_MISS), <u32>n) || refill(s, load<u64>(s, VCPU_MMU + MMU_MISS), <u32>n)) continue
      } else if (n != 0) break
      n = slow(s)
      if (n != 1) break
      if (atomic.load<u64>(s, CPU_BUDGET) < load<u64>(s, CPU_ICOUNT)) {
        // A device moved time, or an event came, inside the block: what is due comes behind this instruction, not behind the block.
        store<u32>(s, load<u32>(s, CPU_SAVED_OP) - 32, CPU_SAVED_OP)
        store<u32>(s, LEAVE_NEXT, CPU_LEAVE)
        break
      }
    }
    if (n <= 1) {
      n = 0
      if (!load<u32>(s, CPU_LEAVE) && !load<u32>(s, CPU_LINK)) n = quickLookup(s)
      if (!n) n = boundary(s, <usize>load<u32>(s, CPU_BLOCK), <usize>load<u32>(s, CPU_SAVED_OP))
    }
  }
}

/**
 * Runs from CPU_SAVED_OP as long as everything is simple; contains no call. 0: the op at CPU_SAVED_OP wants the slow
 * function; 2..MISSED: it misses the TLB; 1: the block ended at CPU_SAVED_OP and what follows is not known; else the next block, which would pass the budget.
 */
function fast(s: usize): usize {
  let op: usize = <usize>load<u32>(s, CPU_SAVED_OP)
  let n: usize = 0
  const tlb: usize = <usize>load<u32>(s, CPU_TLB_BASE)
  for (;;) {
    const id = <u32>load<u16>(op)
    switch (id) {
${cases(hotHandlers, 0, memoryBase)}
      // The bounds check of the switch is what tells memory forms and cold ops from the others.
      default: {
        if (id >= coldBase) { store<u32>(s, <u32>op, CPU_SAVED_OP); return 0 }
        ${fastAddress}
        const access = <u32>load<u8>(op, OP_ACCESS)
        const t: usize = tlb + ((<usize>va >> 7) & 0x7fe0)
        const last = (va + <u64>(access & 7)) & ~(<u64>0xfff)
        if (load<u64>(t + <usize>(access & ACCESS_WRITE), TLB_READ) != last) {${quickFill(missed, { want: '(1 + (access >> 3))', entry: 't', crosses: 'last != page' }).replaceAll('\n', '\n          ')}
        }
        const h: usize = <usize>(<u32>va + load<u32>(t, TLB_ADDEND))
        switch (<u32>load<u16>(op)) {
${cases(hotHandlers, memoryBase)}
        }
      }
    }
    if (!n) {
      if ((load<u32>(s, CPU_MODE) & MODE_CS_MASK) == MODE_CS64) {
        const rip = load<u64>(s, CPU_RIP)
        const e = s + (((<usize>rip ^ (<usize>rip >> 12)) & 4095) << 4)
        if (load<u64>(e, VCPU_JUMP) == rip && load<u32>(e, VCPU_JUMP + 12) == load<u32>(s, CPU_JUMP_KEY)) n = <usize>load<u32>(e, VCPU_JUMP + 8)
      }
      if (!n) { store<u32>(s, <u32>op, CPU_SAVED_OP); return 1 }
    }
    const count = load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT)
    if (count > load<u64>(s, CPU_BUDGET)) return n
    store<u64>(s, count, CPU_ICOUNT)
    store<u32>(s, <u32>n, CPU_BLOCK)
    op = n + 32
    n = 0
  }
  return 0
}

/**
 * Executes the op at CPU_SAVED_OP with every slow path, and the cold ops right after it. 1: go on with the fast function at
 * CPU_SAVED_OP; 0: the block was left at CPU_SAVED_OP (CPU_LEAVE); else the next block.
 */
function slow(s: usize): usize {
  let op: usize = <usize>load<u32>(s, CPU_SAVED_OP)
  let n: usize = 0
  for (;;) {
    switch (<u32>load<u16>(op)) {
${cases(slowHandlers)}
      default: {
        store<u32>(s, <u32>op, CPU_OP)
        const l: u32 = call_indirect<u32>(load<u32>(COLD_TABLE + ((<usize>load<u16>(op) - <usize>coldBase) << 2)), s, op)
        if (l) { store<u32>(s, l, CPU_LEAVE); break }
        op += 32
        if (<u32>load<u16>(op) < coldBase || atomic.load<u64>(s, CPU_BUDGET) < load<u64>(s, CPU_ICOUNT)) { store<u32>(s, <u32>op, CPU_SAVED_OP); return 1 }
        continue
      }
    }
    store<u32>(s, <u32>op, CPU_SAVED_OP)
    return n
  }
  return 0
}
`
}
