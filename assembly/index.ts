/** Everything the core exports, by room. */
import './decode/constants'
export * from './memory/exports'
export * from './kvm/exports'
export * from './execute/exports'
