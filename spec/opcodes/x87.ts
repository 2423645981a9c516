/** x87 (SDM vol 2, appendix A.5). Row format: row.ts. */
export const x87: readonly string[] = [
  '9B WAIT =wait',
  'D9/5m FLDCW Ew =fldcw',
  'D9/7m FNSTCW Ew =fnstcw',
  'DD/7m FNSTSW Ew =fnstsw',
  'DF:E0 FNSTSW =fnstswAx',
  'DB:E2 FNCLEX =fnclex',
  'DB:E3 FNINIT =fninit',
  'DB:E0 FNENI =fnop',
  'DB:E1 FNDISI =fnop',
  'DB:E4 FNSETPM =fnop',
  'D9:D0 FNOP =fnop',
]
