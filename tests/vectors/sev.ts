/**
 * Launch digests of SEV, SEV-ES and SNP, and session vectors.
 *
 * Digests: virtee/sev-snp-measure 8f2b337e (and an independent re-implementation that agrees with it) over Debian 12's
 * OVMF.fd (ovmf 2022.11-6+deb12u2), vCPU type EPYC-Milan, VMM QEMU. Counts other than 1 are known by their first bytes.
 * Session and measurement: virtee/sev src/session/mod.rs, tests `derive` and `verify`. Apache-2.0.
 */
export const ovmf = {
  sha256: '7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773',
  base: 0xffe00000n,
  /** SEV-ES reset block of the GUID table: CS base and RIP of application processors. */
  resetEip: 0x80b004,
  sev: '7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773',
  /** KVM_SEV_INIT2, by number of vCPUs. */
  sevEs: { 1: '8590d0b6d4beced4ec5d855960dd684f2887af7ae80bb6783610620c6aa34362', 2: 'e0adde74', 4: '20870ccf' },
  /** SNP, SEV_FEATURES 1: after the image, after each section of its metadata in QEMU's order, after each of 4 vCPUs. */
  snp: {
    image: 'ba2c811512ef868474f239a21f7d7057d65a20de87a003c4f116e4fb1573183bfbcd75c3e99b2f558575a5d0094f73c6',
    /** Address, size, page type (3 zero, 5 secrets, 6 CPUID), digest. */
    sections: [
      [0x800000, 0x9000, 3, '0c619fe8006047b123e6a6f97e2b09e5d338f2d64b56e5bfe43fd0caa5df97877ef76185b684ff177fec56ad992ef404'],
      [0x80a000, 0x3000, 3, '58686d5069abeeefdc42a4522365d823c32a62e42bac1b00aa66fb531a191230662169bd1f06c10c9ac3ced017a222f8'],
      [0x80d000, 0x1000, 5, '18d349e491f1c582031e1cd1abb9df7a8f1f900151e49ee3181cd364c2e66c31525976cec1da42cfcfea00fb232c5664'],
      [0x80e000, 0x1000, 6, '7ee4345c03070e36949185b5a9c05dd742fca38428ebea0d36be2ea8a06cf6419469d71f41b2769bc52cd00aaeb7a780'],
      [0x80f000, 0x11000, 3, '1c4a6703fc7248581d08c597e73812dbccc1df1e8a415d47f8553237bb2edfedceb18860550cfac653d2530cbcee0548'],
    ],
    vcpus: {
      0: '1c4a6703fc7248581d08c597e73812dbccc1df1e8a415d47f8553237bb2edfedceb18860550cfac653d2530cbcee0548',
      1: '80479ca85a2b182c026f6a3a2f2b180ab968d84b17540dd30de39039e70b8c0c33ead2cae6d34e37750035fcff60bfc8',
      2: 'a175292a4a09fcfb760c5bd80c93ed667dbaafce6247d0f21fc06638658b3ebf2804d3019e2abed05cb6a9efe0a7464e',
      4: 'e9c10ab98f8086bf4a4993dcdc1f768b1128bcb02301d1791f1d3274329e790db2d12a301d66d99a462a13b5d87e2840',
    },
  },
  /** KVM_SEV_ES_INIT: FPU fields stay 0. */
  sevEsLegacy: { 1: '1098dfc8c777edbe39cd994cd7c26a9220d9e0791209ab1c26fc073cec1b4845', 2: 'baab03ba', 4: '9440cd95' },
} as const

export const measureVector = {
  tik: '66320db73158a35a255d051758e95ed4',
  mnonce: '4fbe0bedbad6c86ae8f68971d103e554',
  api: { MAJOR: 0, MINOR: 18, BUILD: 15 },
  policy: 0,
  /** SHA-256 of nothing. */
  digest: 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',
  measure: '6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea',
} as const

/** z, nonce, iv, TEK and TIK are 16 zero bytes each; the policy is 0. */
export const sessionVector = {
  master: 'ab4d269fcc62bedb4511d56c386ce706',
  kek: 'b6abfbfb75ea1ea74ed8750b8afdb973',
  kik: '53b524bf5669a363f365c864acba8572',
  wrapped: '2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4',
  wrapMac: '3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d',
  policyMac: 'aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af',
} as const
