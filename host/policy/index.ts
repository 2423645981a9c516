/** The policy table, its profiles and explanations. */
export { PROFILES, type Profile } from './profiles.ts'
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
  policyTable,
} from './table.ts'
