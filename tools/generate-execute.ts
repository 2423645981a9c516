/** Writes the execution loop: one switch over the hot handlers, cold handlers through the function table. */
import { hotHandlers } from './hot-handlers.ts'

export const hotIds: ReadonlyMap<string, number> = new Map([...hotHandlers.keys()].map((name, id) => [name, id]))

/** First id of the cold handlers. */
export const coldBase = hotIds.size

export function executeSource(): string {
  const cases = [...hotHandlers].map(([name, code], id) => `        case ${id}: { // ${name}\n          ${code}\n        }`)
  return `// Generated from the opcode map by tools/generate-execute.ts. Do not edit.
import {
  BLOCK_COUNT, COLD_TABLE, CPU_BUDGET, CPU_EFLAGS, CPU_FLAG_A, CPU_FLAG_B, CPU_FLAG_KIND, CPU_FLAG_RESULT, CPU_FLAG_SHIFT, CPU_ICOUNT, CPU_LEAVE,
  CPU_LINK, CPU_MODE, CPU_OP, CPU_RIP, CPU_RIP_MASK, CPU_SCRATCH, CPU_TLB_BASE, FLAG_ADD, FLAG_DEC, FLAG_EAGER, FLAG_INC, FLAG_LOGIC, FLAG_RESULT_ONLY, FLAG_SUB,
  LEAVE_BRANCH, LEAVE_NEXT, MODE_FLAT, MODE_SS32, OP_BASE, OP_DISP, OP_EA, OP_EXTRA, OP_FLAGS, OP_IMM, OP_INDEX, OP_NEXT, OP_REG, OP_RM, OP_SCALE,
  TLB_ADDEND, TLB_READ, TLB_WRITE,
} from './layout'
import { carry, condition, less, overflow, parity, rotateFlags, zero } from '../cpu/flags'
import { commitModify, slowModify, slowRead, slowWrite } from '../memory/access'
import { eaGeneral, STACK_OP } from '../execute/operands'
import { callRelative, callRm, mulOverflows, popRegister, pushImmediate, pushRegister, ret } from '../execute/basic'
import { boundary, overBudget, quickLookup, resume } from '../execute/boundary'

/** Runs the vCPU until CPU_STOP_REASON says why it stopped. */
export function execute(s: usize): void {
  let n: usize = resume(s)
  if (!n) return
  let b: usize = 0
  let op: usize = 0
  for (;;) {
    let count: u64 = load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT)
    while (count > atomic.load<u64>(s, CPU_BUDGET)) {
      n = overBudget(s, n)
      if (!n) return
      count = load<u64>(s, CPU_ICOUNT) + <u64>load<u32>(n, BLOCK_COUNT)
    }
    store<u64>(s, count, CPU_ICOUNT)
    b = n
    op = n + 32
    n = 0
    for (;;) {
      switch (<u32>load<u16>(op)) {
${cases.join('\n')}
        default: {
          store<u32>(s, <u32>op, CPU_OP)
          const l: u32 = call_indirect<u32>(load<u32>(COLD_TABLE + ((<usize>load<u16>(op) - ${coldBase}) << 2)), s, op)
          if (l) { store<u32>(s, l, CPU_LEAVE); break }
          op += 32
          continue
        }
      }
      break
    }
    if (!n) {
      if (!load<u32>(s, CPU_LEAVE) && !load<u32>(s, CPU_LINK)) n = quickLookup(s)
      if (!n) {
        n = boundary(s, b, op)
        if (!n) return
      }
    }
  }
}
`
}
