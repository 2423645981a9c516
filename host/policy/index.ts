/** The policy table, its profiles and explanations. */
export { type Overlay, PROFILES, type Profile, type ProfileData } from './profiles.ts'
export {
  POLICY_TYPES,
  type Linux,
  type PolicyEntry,
  type PolicyLine,
  type PolicyPhase,
  type PolicyResult,
  type PolicyRule,
  type PolicyType,
  policyLines,
  parseProfile,
  policyTable,
  type ProfileSource,
} from './table.ts'
