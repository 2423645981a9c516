/**
 * Initial VMSA of an SEV-ES or SNP vCPU under QEMU 9.2 (EPYC-Milan, KVM_SEV_INIT2, SEV_FEATURES = 1): the non-zero quadwords,
 * as little-endian bytes. Origin: virtee/sev-snp-measure 0.0.13, vmsa.py, whose launch digests AMD hardware confirms.
 */
export const bspQwords: readonly (readonly [offset: number, bytes: string])[] = [
  [0x0, '00009300ffff0000'], [0x10, '00f09b00ffff0000'], [0x18, '0000ffff00000000'], [0x20, '00009300ffff0000'], [0x30, '00009300ffff0000'],
  [0x40, '00009300ffff0000'], [0x50, '00009300ffff0000'], [0x60, '00000000ffff0000'], [0x70, '00008200ffff0000'], [0x80, '00000000ffff0000'],
  [0x90, '00008b00ffff0000'], [0xd0, '0010000000000000'], [0x148, '4000000000000000'], [0x158, '1000000000000000'], [0x160, '0004000000000000'],
  [0x168, 'f00fffff00000000'], [0x170, '0200000000000000'], [0x178, 'f0ff000000000000'], [0x268, '0604070006040700'], [0x310, '110fa00000000000'],
  [0x3b0, '0100000000000000'], [0x3e8, '0100000000000000'], [0x408, '801f000000000000'], [0x410, '7f03000000000000'],
]
/** An AP whose reset address is 0x80b004 differs in CS.base and RIP. */
export const apQwords: readonly (readonly [offset: number, bytes: string])[] = [[0x18, '0000800000000000'], [0x178, '04b0000000000000']]
