/** The policy table, its profiles and explanations. */
export {
  type Condition,
  CONDITIONS,
  phaseOf,
  MAIL_NOTES,
  type MailNote,
  type Overlay,
  PROFILE_TYPES,
  PROFILES,
  type Profile,
  type ProfileData,
  profileOf,
} from './profiles.ts'
export {
  POLICY_TYPES,
  inherits,
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
