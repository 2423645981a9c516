/** Everything the core exports, by room. */
export * from './memory/exports'
export * from './kvm/exports'
export * from './execute/exports'
