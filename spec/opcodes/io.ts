/** Port I/O, HLT, VMMCALL and VMGEXIT. SDM vol 2; VMGEXIT: APM vol 3. Handlers: assembly/execute/{io,vmgexit}.ts. */
export const io: readonly string[] = [
  '6C INS Yb,DX size=1 =ins end',
  '6D INS Yv,DX =ins end',
  '6E OUTS DX,Xb size=1 =outs end',
  '6F OUTS DX,Xv =outs end',
  'E4 IN AL,Ub =inImmediate end',
  'E5 IN rAX,Ub =inImmediate end',
  'E6 OUT Ub,AL =outImmediate end',
  'E7 OUT Ub,rAX =outImmediate end',
  'EC IN AL,DX =inDx end',
  'ED IN rAX,DX =inDx end',
  'EE OUT DX,AL =outDx end',
  'EF OUT DX,rAX =outDx end',
  'F4 HLT =hlt end',
  'NP.0F.01:D9 VMMCALL =vmmcall end',
  'F2.0F.01:D9 VMGEXIT =vmgexit end',
  'F3.0F.01:D9 VMGEXIT =vmgexit end',
]
