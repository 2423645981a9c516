/**
 * BMI1 and BMI2 on general registers: VEX encodings with L = 0 (SDM vol 2, 2.3 and the instructions' pages). `By` is VEX.vvvv,
 * which the decoder leaves in OP_IMM as an offset into CPU. Line format: see row.ts.
 */
export const bmi: readonly string[] = [
  'VEX.NP.0F38.F2 ANDN Gy,By,Ey =andn y',
  'VEX.NP.0F38.F3/1 BLSR By,Ey =blsr y',
  'VEX.NP.0F38.F3/2 BLSMSK By,Ey =blsmsk y',
  'VEX.NP.0F38.F3/3 BLSI By,Ey =blsi y',
  'VEX.NP.0F38.F7 BEXTR Gy,Ey,By =bextr y',
  'VEX.66.0F38.F7 SHLX Gy,Ey,By =shlx y',
  'VEX.F3.0F38.F7 SARX Gy,Ey,By =sarx y',
  'VEX.F2.0F38.F7 SHRX Gy,Ey,By =shrx y',
  'VEX.NP.0F38.F5 BZHI Gy,Ey,By =bzhi y',
  'VEX.F3.0F38.F5 PEXT Gy,By,Ey =pext y',
  'VEX.F2.0F38.F5 PDEP Gy,By,Ey =pdep y',
  'VEX.F2.0F38.F6 MULX Gy,By,Ey =mulx y',
  'VEX.F2.0F3A.F0 RORX Gy,Ey,Ub =rorx y',
]
