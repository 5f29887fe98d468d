package policy

// Code is a reason code. Codes are stable: they stand in receipts, metrics and the audit.
type Code string

// The registry of reason codes.
const (
	CodeAllowed            Code = "allowed"
	CodeInvalidInput       Code = "invalid_input"    // the request is malformed or out of limits
	CodeEvaluationError    Code = "evaluation_error" // a policy failed to evaluate: deny, and someone must act
	CodeIdentityUnverified Code = "identity_unverified"
	CodeUserDisabled       Code = "user_disabled"
	CodeSessionRevoked     Code = "session_revoked"
	CodeSessionAge         Code = "session_age"
	CodeIdentityStale      Code = "identity_stale"
	CodeGroupsIncomplete   Code = "groups_incomplete"
	CodeMFARequired        Code = "mfa_required"
	CodeAuthMethod         Code = "auth_method"
	CodeStepUpIneffective  Code = "step_up_ineffective"
	CodeDeviceUnregistered Code = "device_unregistered"
	CodeDeviceBlocked      Code = "device_blocked"
	CodeDeviceLevel        Code = "device_level"
	CodeDeviceScore        Code = "device_score"
	CodeDeviceFact         Code = "device_fact" // detail "fact" names it
	CodeSchedule           Code = "schedule"
	CodeNetwork            Code = "network"
	CodeAttribute          Code = "attribute"
	CodeRiskHigh           Code = "risk_high"
	CodeRiskCritical       Code = "risk_critical"
	CodeRiskReduced        Code = "risk_reduced"
	CodeAppDisabled        Code = "app_disabled"
	CodeVerbUnknown        Code = "verb_unknown"
	CodeVerbsReduced       Code = "verbs_reduced"
	CodeNoRule             Code = "no_rule"        // no rule speaks for this user and app
	CodeRuleCondition      Code = "rule_condition" // a Cedar rule's own condition does not hold
	CodeForbiddenByRule    Code = "forbidden_by_rule"
	CodeNotRecorded        Code = "not_recorded" // a granting decision could not be stored
	CodeNoPolicy           Code = "no_policy"    // no revision is in force
	CodeIdle               Code = "idle"         // a grant ended because nothing moved on it; detail "limit"
)

// stageOf says in which stage a code shows.
func stageOf(c Code) Stage {
	switch c {
	case CodeIdentityUnverified, CodeUserDisabled, CodeSessionRevoked, CodeSessionAge, CodeIdentityStale,
		CodeGroupsIncomplete, CodeMFARequired, CodeAuthMethod, CodeStepUpIneffective:
		return StageIdentity
	case CodeDeviceUnregistered, CodeDeviceBlocked, CodeDeviceLevel, CodeDeviceScore, CodeDeviceFact:
		return StageDevice
	case CodeSchedule, CodeNetwork:
		return StageContext
	case CodeRiskHigh, CodeRiskCritical, CodeRiskReduced:
		return StageRisk
	default:
		return StagePolicy
	}
}

// Codes lists the registry.
func Codes() []Code {
	return []Code{CodeAllowed, CodeInvalidInput, CodeEvaluationError, CodeIdentityUnverified, CodeUserDisabled,
		CodeSessionRevoked, CodeSessionAge, CodeIdentityStale, CodeGroupsIncomplete, CodeMFARequired,
		CodeAuthMethod, CodeStepUpIneffective, CodeDeviceUnregistered, CodeDeviceBlocked, CodeDeviceLevel,
		CodeDeviceScore, CodeDeviceFact, CodeSchedule, CodeNetwork, CodeAttribute, CodeRiskHigh,
		CodeRiskCritical, CodeRiskReduced, CodeAppDisabled, CodeVerbUnknown, CodeVerbsReduced, CodeNoRule,
		CodeRuleCondition, CodeForbiddenByRule, CodeNotRecorded, CodeNoPolicy, CodeIdle}
}

// remedyCodes is the fixed list, authentication first, then what an employee can do alone,
// then what needs others.
func remedyCodes() []RemedyCode {
	return []RemedyCode{RemedyMFA, RemedySignIn, RemedyStrongKey, RemedyRegisterDevice, RemedyUpdateClient,
		RemedyFirewall, RemedyScreenLock, RemedyAntivirus, RemedyPatch, RemedyUpgradeOS, RemedyEncryptDisk,
		RemedyWait, RemedyEnrolMDM, RemedyHardwareDevice}
}

// Authentication reports whether the remedy is done by authenticating alone. Registering a
// device is: signing in enrols it.
func (r RemedyCode) Authentication() bool {
	return r == RemedyMFA || r == RemedySignIn || r == RemedyStrongKey || r == RemedyRegisterDevice
}
