/**
 * Architecturally undefined flags by mnemonic (SDM vol. 2, "Flags Affected" of each instruction): the only bits the
 * comparison with the physical CPU leaves out.
 */
import { existsSync, readFileSync } from 'node:fs'
import type { Case } from './generate.ts'

const CF = 1
const PF = 4
const AF = 0x10
const ZF = 0x40
const SF = 0x80
const OF = 0x800

/** Count of a shift or rotate as the instruction sees it, before masking by the operand size. */
function shiftCount(c: Case): number {
  const by = c.row.operands.at(-1)
  const n = by === 'CL' ? Number((c.gpr[1] as bigint) & 0xffn) : by === '1' ? 1 : c.immediate & 0xff
  return n & (c.size === 8 ? 63 : 31)
}

/** Zen 4, whose undefined flags the core follows but for those that cost too much (IMUL of two and three operands) or make no sense. */
const cpuinfo = existsSync('/proc/cpuinfo') ? readFileSync('/proc/cpuinfo', 'utf8') : ''
const zen4 = cpuinfo.includes('AuthenticAMD') && /^cpu family\s*: 25$/m.test(cpuinfo)
const followed = new Set([
  'MUL',
  'DIV',
  'IDIV',
  'AND',
  'OR',
  'XOR',
  'TEST',
  'BT',
  'BTS',
  'BTR',
  'BTC',
  'BSF',
  'BSR',
  'TZCNT',
  'LZCNT',
  'ROL',
  'ROR',
  'RCL',
  'RCR',
  'SHL',
  'SHR',
  'SAR',
  'SHLD',
  'SHRD',
])

/** RFLAGS bits that may differ after this case. */
export function undefinedFlags(c: Case): number {
  return zen4 && (followed.has(c.row.mnemonic) || (c.row.mnemonic === 'IMUL' && c.row.ext === 5)) ? 0 : architectural(c)
}

function architectural(c: Case): number {
  switch (c.row.mnemonic) {
    case 'MUL':
    case 'IMUL':
      return SF | ZF | AF | PF
    case 'DAA':
    case 'DAS':
      return OF
    case 'AAA':
    case 'AAS':
      return OF | SF | ZF | PF
    case 'AAM':
    case 'AAD':
      return OF | AF | CF
    case 'DIV':
    case 'IDIV':
      return CF | OF | SF | ZF | AF | PF
    case 'AND':
    case 'OR':
    case 'XOR':
    case 'TEST':
      return AF
    case 'ANDN':
    case 'BLSR':
    case 'BLSMSK':
    case 'BLSI':
    case 'BZHI':
      return AF | PF
    case 'BEXTR':
      return AF | SF | PF
    case 'BT':
    case 'BTS':
    case 'BTR':
    case 'BTC':
      return OF | SF | AF | PF
    case 'BSF':
    case 'BSR':
      return CF | OF | SF | AF | PF
    case 'TZCNT':
    case 'LZCNT':
      return OF | SF | PF | AF
    case 'ROL':
    case 'ROR':
    case 'RCL':
    case 'RCR':
      return shiftCount(c) === 1 ? 0 : shiftCount(c) === 0 ? 0 : OF
    case 'SHL':
    case 'SHR':
    case 'SAR': {
      const n = shiftCount(c)
      if (n === 0) return 0
      return AF | (n === 1 ? 0 : OF) | (n >= c.size * 8 && c.row.mnemonic !== 'SAR' ? CF : 0)
    }
    case 'SHLD':
    case 'SHRD': {
      const n = shiftCount(c)
      if (n === 0) return 0
      return n > c.size * 8 ? CF | OF | SF | ZF | AF | PF : AF | (n === 1 ? 0 : OF)
    }
    default:
      return 0
  }
}

/** True if the destination is undefined too. */
export function undefinedResult(c: Case): boolean {
  if (!zen4 && (c.row.mnemonic === 'SHLD' || c.row.mnemonic === 'SHRD')) return shiftCount(c) > c.size * 8
  return c.row.mnemonic === 'BSWAP' && c.size === 2
}
