/** Profiles of the policy table (data: spec/kvm-profiles.ts), and what they mean beyond single cells. */
import { PROFILE_TYPES, type Profile, type ProfileData } from '../generated/kvm-profiles.ts'
import type { PolicyType } from '../generated/kvm-policy.ts'

export { type Condition, CONDITIONS, phaseOf } from '../generated/kvm-conditions.ts'
export {
  MAIL_NOTES,
  type MailNote,
  type Overlay,
  OVERLAYS,
  PROFILES,
  PROFILE_TYPES,
  type Profile,
  type ProfileData,
} from '../generated/kvm-profiles.ts'

/** The built-in profile that decides for this VM type: a profile that does not define the type inherits `upstream`. */
export function profileOf(profile: string | ProfileData, type: PolicyType): Profile {
  const base = (typeof profile === 'string' ? profile : (profile.base ?? 'upstream')) as Profile
  return PROFILE_TYPES[base]?.includes(type) ? base : 'upstream'
}
