/** Integer instructions outside the generated switch: cold handlers in assembly/execute/. Row format: row.ts. */
export const integerCold: readonly string[] = [
  // String instructions: assembly/execute/string.ts. F2 and F3 are repetition, never another opcode.
  'A4 MOVS =movs size=1',
  'A5 MOVS =movs',
  'A6 CMPS =cmps size=1',
  'A7 CMPS =cmps',
  'AA STOS =stos size=1',
  'AB STOS =stos',
  'AC LODS =lods size=1',
  'AD LODS =lods',
  'AE SCAS =scas size=1',
  'AF SCAS =scas',
  'D7 XLAT =xlat size=1',
  // assembly/execute/muldiv.ts
  'F6/4 MUL Eb =mul', 'F7/4 MUL Ev =mul',
  'F6/5 IMUL Eb =imul', 'F7/5 IMUL Ev =imul',
  'F6/6 DIV Eb =div', 'F7/6 DIV Ev =div',
  'F6/7 IDIV Eb =idiv', 'F7/7 IDIV Ev =idiv',
  // assembly/execute/rotate.ts
  'C0/2 RCL Eb,Ub =rclImm', 'C1/2 RCL Ev,Ub =rclImm', 'D0/2 RCL Eb,1 =rclOne', 'D1/2 RCL Ev,1 =rclOne', 'D2/2 RCL Eb,CL =rclCl', 'D3/2 RCL Ev,CL =rclCl',
  'C0/3 RCR Eb,Ub =rcrImm', 'C1/3 RCR Ev,Ub =rcrImm', 'D0/3 RCR Eb,1 =rcrOne', 'D1/3 RCR Ev,1 =rcrOne', 'D2/3 RCR Eb,CL =rcrCl', 'D3/3 RCR Ev,CL =rcrCl',
  // assembly/execute/bits.ts
  '0F.A3 BT Ev,Gv =bt', '0F.AB BTS Ev,Gv =bts lock', '0F.B3 BTR Ev,Gv =btr lock', '0F.BB BTC Ev,Gv =btc lock',
  '0F.BA/4 BT Ev,Ub =btImm', '0F.BA/5 BTS Ev,Ub =btsImm lock', '0F.BA/6 BTR Ev,Ub =btrImm lock', '0F.BA/7 BTC Ev,Ub =btcImm lock',
  '0F.BC BSF Gv,Ev =bsf', 'F3.0F.BC TZCNT Gv,Ev =tzcnt', '0F.BD BSR Gv,Ev =bsr', 'F3.0F.BD LZCNT Gv,Ev =lzcnt',
  'F3.0F.B8 POPCNT Gv,Ev =popcnt_',
  '0F.A4 SHLD Ev,Gv,Ub =shldImm', '0F.A5 SHLD Ev,Gv,CL =shldCl', '0F.AC SHRD Ev,Gv,Ub =shrdImm', '0F.AD SHRD Ev,Gv,CL =shrdCl',
  // assembly/execute/atomic.ts
  '0F.C0 XADD Eb,Gb =xadd lock', '0F.C1 XADD Ev,Gv =xadd lock',
  '0F.B0 CMPXCHG Eb,Gb =cmpxchg lock', '0F.B1 CMPXCHG Ev,Gv =cmpxchg lock',
  '0F.C7/1m CMPXCHG8B M =cmpxchgPair lock',
  // assembly/execute/bcd.ts
  '27 DAA =daa no64', '2F DAS =das no64', '37 AAA =aaa no64', '3F AAS =aas no64',
  'D4 AAM Ub =aam no64', 'D5 AAD Ub =aad no64', 'D6 SALC =salc no64',
  // assembly/execute/misc.ts
  '0F.C8+r BSWAP Zv =bswap_',
  'NP.0F38.F0 MOVBE Gv,M =movbeLoad mem', '66.0F38.F0 MOVBE Gv,M =movbeLoad mem',
  'NP.0F38.F1 MOVBE M,Gv =movbeStore mem', '66.0F38.F1 MOVBE M,Gv =movbeStore mem',
  'F2.0F38.F0 CRC32 Gy,Eb =crc32Byte', 'F2.0F38.F1 CRC32 Gy,Ev =crc32',
  '66.0F38.F6 ADCX Gy,Ey =adcx', 'F3.0F38.F6 ADOX Gy,Ey =adox',
  'NP.0F38.F9 MOVDIRI M,Gy =movdiri mem', '66.0F38.F8 MOVDIR64B Gy,M =movdir64b mem',
  'NP.0F.C7/6r RDRAND Ev =rdrand', '66.0F.C7/6r RDRAND Ev =rdrand', 'NP.0F.C7/7r RDSEED Ev =rdrand', '66.0F.C7/7r RDSEED Ev =rdrand',
  '98 CBW =cbw', '99 CWD =cwd',
  'E0 LOOPNE Jb =loopne end d64', 'E1 LOOPE Jb =loope end d64', 'E2 LOOP Jb =loop end d64', 'E3 JCXZ Jb =jcxz end d64',
  'A0 MOV AL,Ob =movFromOffset', 'A1 MOV rAX,Ov =movFromOffset', 'A2 MOV Ob,AL =movToOffset', 'A3 MOV Ov,rAX =movToOffset',
]
