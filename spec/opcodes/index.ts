/** The opcode map: the one source for decoding, dispatch, the coverage document and the tests. */
import { integer } from './integer.ts'
import { parseRow } from './row.ts'
import type { Opcode } from './row.ts'

export const opcodes: readonly Opcode[] = [...integer].map(parseRow)
export type { Opcode } from './row.ts'
