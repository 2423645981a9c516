/** Bits of the registers that every room of the CPU asks for, by name and number; CR4.CET and the PKS bit are those of Intel. */

/** A register, its document, and its bits. */
export interface RegisterBits {
  readonly document: string
  readonly bits: Readonly<Record<string, number>>
}

export const registerBits: Readonly<Record<string, RegisterBits>> = {
  CR0: {
    document: 'Control register 0 (SDM vol 3, 2.5)',
    bits: { PE: 0, MP: 1, EM: 2, TS: 3, ET: 4, NE: 5, WP: 16, AM: 18, NW: 29, CD: 30, PG: 31 },
  },
  CR4: {
    document: 'Control register 4 (SDM vol 3, 2.5)',
    bits: {
      VME: 0,
      PVI: 1,
      TSD: 2,
      DE: 3,
      PSE: 4,
      PAE: 5,
      MCE: 6,
      PGE: 7,
      PCE: 8,
      OSFXSR: 9,
      OSXMMEXCPT: 10,
      UMIP: 11,
      LA57: 12,
      FSGSBASE: 16,
      PCIDE: 17,
      OSXSAVE: 18,
      SMEP: 20,
      SMAP: 21,
      PKE: 22,
      CET: 23,
      PKS: 24,
    },
  },
  EFER: {
    document: 'Extended feature enable register (APM vol 2, 3.1.7)',
    bits: { SCE: 0, LME: 8, LMA: 10, NXE: 11, SVME: 12, FFXSR: 14 },
  },
  FLAG: {
    document: 'RFLAGS (SDM vol 1, 3.4.3)',
    bits: { TF: 8, IF: 9, DF: 10, NT: 14, RF: 16, VM: 17, AC: 18, VIF: 19, VIP: 20, ID: 21 },
  },
  PTE: {
    document: 'Page-table entries (SDM vol 3, 4.5)',
    bits: { P: 0, W: 1, U: 2, A: 5, D: 6, PS: 7, G: 8, NX: 63 },
  },
}

/** Fields of more than one bit. */
export const registerFields: Readonly<Record<string, number>> = { FLAG_IOPL: 0x3000 }
