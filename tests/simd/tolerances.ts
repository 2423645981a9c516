/** Where the physical CPU's result is its own business: what the manuals leave open, and how far. */
import type { Opcode } from '../../spec/opcodes/index.ts'

/** Relative error at most 1.5 * 2^-12, table-driven in hardware (SDM vol 2, RCPPS, RSQRTPS). */
export const estimates = /^(RCP|RSQRT)[PS]S$/
/** x87 transcendentals: one unit in the last place (SDM vol 1, 8.3.10). */
export const oneUlp = /^(FPTAN|FSIN|FCOS|FSINCOS|F2XM1|FYL2X|FYL2XP1|FPATAN)$/
/** No result to compare, one that names the machine (FNSAVE and FNSTENV hold RIP), or CPL 0. */
export const skipped = (row: Opcode): boolean => row.handler === 'unimplemented' || /^(FNSAVE|FNSTENV|XSAVES|XRSTORS)$/.test(row.mnemonic)
