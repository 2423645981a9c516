/**
 * Segment, privilege, system and flag instructions. Handlers: assembly/execute/{transfer,stack,descriptor,system}.ts.
 * Source: SDM vol 2 and appendix A; APM vol 3. Line format: row.ts.
 */
export const system: readonly string[] = [
  // Segment registers: assembly/execute/stack.ts
  '8C MOV Ev,Sw =movFromSreg',
  '8E MOV Sw,Ew =movToSreg end',
  '06 PUSH =pushEs no64', '0E PUSH =pushCs no64', '16 PUSH =pushSs no64', '1E PUSH =pushDs no64',
  '0F.A0 PUSH =pushFs d64', '0F.A8 PUSH =pushGs d64',
  '07 POP =popEs no64 end', '17 POP =popSs no64 end', '1F POP =popDs no64 end',
  '0F.A1 POP =popFs d64 end', '0F.A9 POP =popGs d64 end',
  'C4 LES Gv,Mp =les no64 mem end', 'C5 LDS Gv,Mp =lds no64 mem end',
  '0F.B2 LSS Gv,Mp =lss mem end', '0F.B4 LFS Gv,Mp =lfs mem end', '0F.B5 LGS Gv,Mp =lgs mem end',
  '60 PUSHA =pusha no64', '61 POPA =popa no64',
  'C8 ENTER Iw,Ub =enter d64', 'C9 LEAVE =leave d64',
  '62 BOUND Gv,Ma =bound no64 mem',
  // Flags
  '9C PUSHF =pushf d64', '9D POPF =popf d64',
  '9E SAHF =sahf', '9F LAHF =lahf',
  'F5 CMC =cmc', 'F8 CLC =clc', 'F9 STC =stc', 'FC CLD =cld', 'FD STD =std',
  'FA CLI =cli', 'FB STI =sti end',
  // Far transfers: assembly/execute/transfer.ts
  'EA JMPF Ap =jmpFar no64 end', '9A CALLF Ap =callFar no64 end',
  'FF/5m JMPF Mp =jmpFarMemory end', 'FF/3m CALLF Mp =callFarMemory end',
  'CA RETF Iw =retFar end', 'CB RETF =retFar end', 'CF IRET =iret end',
  'CC INT3 =int3 end', 'CD INT Ub =intN end', 'CE INTO =into no64 end', 'F1 INT1 =int1 end',
  // Descriptor tables: assembly/execute/descriptor.ts
  '0F.00/0 SLDT Ev =sldt', '0F.00/1 STR Ev =str', '0F.00/2 LLDT Ew =lldt end', '0F.00/3 LTR Ew =ltr end',
  '0F.00/4 VERR Ew =verr', '0F.00/5 VERW Ew =verw',
  '0F.01/0m SGDT Ms =sgdt', '0F.01/1m SIDT Ms =sidt', '0F.01/2m LGDT Ms =lgdt end', '0F.01/3m LIDT Ms =lidt end',
  '0F.02 LAR Gv,Ew =lar', '0F.03 LSL Gv,Ew =lsl',
  // Control: assembly/execute/system.ts
  '0F.01/4 SMSW Ev =smsw', '0F.01/6 LMSW Ew =lmsw end', '0F.01/7m INVLPG M =invlpg end',
  '0F.20 MOV Rd,Cd =movFromCr native lock', '0F.22 MOV Cd,Rd =movToCr native lock end',
  '0F.21 MOV Rd,Dd =movFromDr native', '0F.23 MOV Dd,Rd =movToDr native end',
  '0F.06 CLTS =clts end',
  'NP.0F.01:D0 XGETBV =xgetbv', 'NP.0F.01:D1 XSETBV =xsetbv end',
  '66.0F38.82 INVPCID Gy,M =invpcid mem native end',
  '0F.08 INVD =invd', '0F.09 WBINVD =wbinvd',
  '0F.A2 CPUID =cpuid', '0F.31 RDTSC =rdtsc end', '0F.01:F9 RDTSCP =rdtscp end', '0F.33 RDPMC =rdpmc', 'NP.0F.01:FD RDPRU =rdpru',
  'F3.0F.C7/7r RDPID Rd =rdpid native',
  '0F.30 WRMSR =wrmsr end', '0F.32 RDMSR =rdmsr end',
  'F3.0F.AE/0r RDFSBASE Ey =rdfsbase', 'F3.0F.AE/1r RDGSBASE Ey =rdgsbase', 'F3.0F.AE/2r WRFSBASE Ey =wrfsbase', 'F3.0F.AE/3r WRGSBASE Ey =wrgsbase',
  '0F.01:F8 SWAPGS =swapgs',
  '0F.05 SYSCALL =syscall end', '0F.07 SYSRET =sysret end', '0F.34 SYSENTER =sysenter end', '0F.35 SYSEXIT =sysexit end',
  '0F.01:CA CLAC =clac', '0F.01:CB STAC =stac',
  'NP.0F.01:C8 MONITOR =monitor', 'NP.0F.01:C9 MWAIT =mwait', 'NP.0F.01:FA MONITORX =monitorx', 'NP.0F.01:FB MWAITX =mwaitx', '0F.01:FC CLZERO =clzero',
  'F3.90 PAUSE =pause',
  '66.0F.01:D9 VMMCALL =vmmcall end', '0F.01:C1 VMCALL =vmcall end',
  ...['D8 VMRUN', 'DA VMLOAD', 'DB VMSAVE', 'DC STGI', 'DD CLGI', 'DE SKINIT', 'DF INVLPGA'].map((r) => `0F.01:${r} =svm`),
  '0F.AA RSM =rsm',
  '0F.0B UD2 =ud', '0F.B9 UD1 Gv,Ev =ud', '0F.FF UD0 Gv,Ev =ud',
]
