/**
 * Launch digests and session vectors for SEV and SEV-ES.
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
