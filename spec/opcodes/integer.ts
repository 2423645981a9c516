/**
 * Integer instructions whose handlers are generated into the loop's switch (tools/generate-execute.ts),
 * with a cold handler beside it for the forms that are rare. Source: SDM vol 2, appendix A; APM vol 3,
 * appendix A. Line format: see row.ts.
 */
const alu = ['ADD', 'OR', 'ADC', 'SBB', 'AND', 'SUB', 'XOR', 'CMP']
const shifts = ['ROL', 'ROR', 'RCL', 'RCR', 'SHL', 'SHR', 'SHL', 'SAR']
const conditions = ['O', 'NO', 'B', 'AE', 'E', 'NE', 'BE', 'A', 'S', 'NS', 'P', 'NP', 'L', 'GE', 'LE', 'G']
const hex = (n: number): string => n.toString(16).toUpperCase().padStart(2, '0')

// Near branches obey the operand-size prefix in 64-bit mode as AMD's do (APM vol 3, 1.2.2; measured): d64, not Intel's f64.
export const integer: readonly string[] = [
  ...alu.flatMap((name, i) => {
    const lock = name === 'CMP' ? '' : ' lock'
    return [
      `${hex(i * 8)} ${name} Eb,Gb${lock}`,
      `${hex(i * 8 + 1)} ${name} Ev,Gv${lock}`,
      `${hex(i * 8 + 2)} ${name} Gb,Eb`,
      `${hex(i * 8 + 3)} ${name} Gv,Ev`,
      `${hex(i * 8 + 4)} ${name} AL,Ib`,
      `${hex(i * 8 + 5)} ${name} rAX,Iz`,
      `80/${i} ${name} Eb,Ib${lock}`,
      `81/${i} ${name} Ev,Iz${lock}`,
      `82/${i} ${name} Eb,Ib${lock} no64`,
      `83/${i} ${name} Ev,Ib${lock}`,
    ]
  }),
  '84 TEST Eb,Gb',
  '85 TEST Ev,Gv',
  'A8 TEST AL,Ib',
  'A9 TEST rAX,Iz',
  'F6/0 TEST Eb,Ib',
  'F6/1 TEST Eb,Ib',
  'F7/0 TEST Ev,Iz',
  'F7/1 TEST Ev,Iz',
  '88 MOV Eb,Gb',
  '89 MOV Ev,Gv',
  '8A MOV Gb,Eb',
  '8B MOV Gv,Ev',
  'C6/0 MOV Eb,Ib',
  'C7/0 MOV Ev,Iz',
  'B0+r MOV Zb,Ib',
  'B8+r MOV Zv,Iv',
  '8D LEA Gv,M mem =lea',
  '0F.B6 MOVZX Gv,Eb =movzx8',
  '0F.B7 MOVZX Gv,Ew =movzx16',
  '0F.BE MOVSX Gv,Eb =movsx8',
  '0F.BF MOVSX Gv,Ew =movsx16',
  // ARPL outside 64-bit mode.
  '63 MOVSXD Gv,Ed =movsxd',
  '40+r INC Zv no64',
  '48+r DEC Zv no64',
  'FE/0 INC Eb lock',
  'FE/1 DEC Eb lock',
  'FF/0 INC Ev lock',
  'FF/1 DEC Ev lock',
  'F6/2 NOT Eb lock',
  'F7/2 NOT Ev lock',
  'F6/3 NEG Eb lock',
  'F7/3 NEG Ev lock',
  ...shifts.flatMap((name, i) =>
    name === 'RCL' || name === 'RCR'
      ? []
      : [
          `C0/${i} ${name} Eb,Ub =shift`,
          `C1/${i} ${name} Ev,Ub =shift`,
          `D0/${i} ${name} Eb,1 =shift`,
          `D1/${i} ${name} Ev,1 =shift`,
          `D2/${i} ${name} Eb,CL =shift`,
          `D3/${i} ${name} Ev,CL =shift`,
        ],
  ),
  '50+r PUSH Zv d64 =pushRegister',
  '58+r POP Zv d64 =popRegister',
  '68 PUSH Iz d64 =pushImmediate',
  '6A PUSH Ib d64 =pushImmediate',
  'FF/6 PUSH Ev d64 =pushRm',
  '8F/0 POP Ev d64 =popRm',
  'E8 CALL Jz d64 end =callRelative',
  'E9 JMP Jz d64 end',
  'EB JMP Jb d64 end',
  'FF/2 CALL Ev d64 end =callRm',
  'FF/4 JMP Ev d64 end =jumpRm',
  'C3 RET d64 end =ret',
  'C2 RET Iw d64 end =ret',
  ...conditions.flatMap((c, i) => [
    `7${i.toString(16).toUpperCase()} J${c} Jb d64 end`,
    `0F.8${i.toString(16).toUpperCase()} J${c} Jz d64 end`,
    `0F.9${i.toString(16).toUpperCase()} SET${c} Eb =setcc`,
    `0F.4${i.toString(16).toUpperCase()} CMOV${c} Gv,Ev =cmov`,
  ]),
  '0F.AF IMUL Gv,Ev =imul2',
  '69 IMUL Gv,Ev,Iz =imul3',
  '6B IMUL Gv,Ev,Ib =imul3',
  '90+r XCHG Zv,rAX =xchgAx',
  '87 XCHG Ev,Gv =xchg lock',
  '86 XCHG Eb,Gb =xchg lock',
  '0F.1F NOP Ev',
  '0F.0D NOP Ev mem',
  ...['18', '19', '1A', '1B', '1C', '1D', '1E'].map((o) => `0F.${o} NOP Ev`),
]
