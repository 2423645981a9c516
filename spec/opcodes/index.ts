/** The opcode map: the one source for decoding, dispatch, the coverage document and the tests. */
import { integerCold } from './integer-cold.ts'
import { bmi } from './bmi.ts'
import { integer } from './integer.ts'
import { io } from './io.ts'
import { parseRow } from './row.ts'
import { sse } from './sse.ts'
import { system } from './system.ts'
import { x87 } from './x87.ts'
import type { Opcode } from './row.ts'

export const opcodes: readonly Opcode[] = [...integer, ...bmi, ...integerCold, ...io, ...sse, ...system, ...x87].map(parseRow)
export type { Opcode, PrefixClass, SizeRule } from './row.ts'
