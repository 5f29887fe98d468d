package policy

import (
	"strings"

	"github.com/postern-zt/postern/broker/trust"
)

// Language is a language of the catalogue. Anything unknown reads as English.
type Language string

// The languages of the catalogue.
const (
	English Language = "en"
	German  Language = "de"
)

// text holds a sentence per language. Placeholders {x} are filled from a reason's detail.
type text struct{ en, de string }

func (t text) in(l Language) string {
	if l == German {
		return t.de
	}
	return t.en
}

// reasonText is the catalogue of reasons. What the employee cannot act on says so plainly and
// gives no more away than the code does.
func reasonText(c Code) text {
	switch c {
	case CodeAllowed:
		return text{"Access is allowed.", "Der Zugriff ist erlaubt."}
	case CodeIdentityUnverified:
		return text{"You are not signed in.", "Sie sind nicht angemeldet."}
	case CodeUserDisabled:
		return text{"Your account is disabled.", "Ihr Konto ist gesperrt."}
	case CodeSessionRevoked:
		return text{"Your session was ended.", "Ihre Sitzung wurde beendet."}
	case CodeSessionAge:
		return text{"You signed in more than {need} ago.", "Ihre Anmeldung liegt länger als {need} zurück."}
	case CodeIdentityStale:
		return text{"Your identity provider has not confirmed your account for too long.", "Ihr Konto wurde zu lange nicht vom Anmeldedienst bestätigt."}
	case CodeGroupsIncomplete:
		return text{"Not all of your groups are known, so a rule about groups could not be cleared.", "Nicht alle Ihre Gruppen sind bekannt, daher ließ sich eine Gruppenregel nicht ausschließen."}
	case CodeMFARequired:
		return text{"A second factor within the last {need} is required.", "Ein zweiter Faktor innerhalb der letzten {need} ist nötig."}
	case CodeAuthMethod:
		return text{"You must sign in with: {need}.", "Sie müssen sich anmelden mit: {need}."}
	case CodeStepUpIneffective:
		return text{"You signed in again, but your sign-in service did not confirm what is required.", "Sie haben sich erneut angemeldet, aber der Anmeldedienst hat das Nötige nicht bestätigt."}
	default:
		return deviceText(c)
	}
}

func deviceText(c Code) text {
	switch c {
	case CodeDeviceUnregistered:
		return text{"This device is not registered.", "Dieses Gerät ist nicht registriert."}
	case CodeDeviceBlocked:
		return text{"This device is blocked.", "Dieses Gerät ist gesperrt."}
	case CodeDeviceLevel:
		return text{"This device is “{have}”, but “{need}” is required.", "Dieses Gerät ist „{have}“, nötig ist „{need}“."}
	case CodeDeviceScore:
		return text{"This device has a trust score of {have}, but {need} is required.", "Dieses Gerät hat den Vertrauenswert {have}, nötig ist {need}."}
	case CodeDeviceFact:
		return text{"A check of this device does not pass: {fact}.", "Eine Prüfung dieses Geräts ist nicht erfüllt: {fact}."}
	case CodeSchedule:
		return text{"Access is not open at this time.", "Zu dieser Zeit ist der Zugriff nicht geöffnet."}
	case CodeNetwork:
		return text{"Access is not allowed from this network.", "Von diesem Netz aus ist der Zugriff nicht erlaubt."}
	case CodeRiskHigh:
		return text{"Something about this session is unusual; please confirm that it is you.", "An dieser Sitzung ist etwas ungewöhnlich; bitte bestätigen Sie, dass Sie es sind."}
	case CodeRiskCritical:
		return text{"This session was stopped because its risk is too high.", "Diese Sitzung wurde wegen zu hohen Risikos gestoppt."}
	case CodeRiskReduced:
		return text{"Access is reduced while something about this session is unusual.", "Der Zugriff ist eingeschränkt, solange an dieser Sitzung etwas ungewöhnlich ist."}
	default:
		return policyText(c)
	}
}

func policyText(c Code) text {
	switch c {
	case CodeAttribute:
		return text{"Your account does not meet a condition of the rule.", "Ihr Konto erfüllt eine Bedingung der Regel nicht."}
	case CodeAppDisabled:
		return text{"This app is switched off.", "Diese Anwendung ist abgeschaltet."}
	case CodeVerbUnknown:
		return text{"The app does not know what was asked for.", "Die Anwendung kennt das Verlangte nicht."}
	case CodeVerbsReduced:
		return text{"You may use a part of this app only.", "Sie dürfen nur einen Teil dieser Anwendung nutzen."}
	case CodeNoRule:
		return text{"No rule gives you access to this app.", "Keine Regel gibt Ihnen Zugriff auf diese Anwendung."}
	case CodeRuleCondition:
		return text{"A condition of the rule for this app does not hold.", "Eine Bedingung der Regel für diese Anwendung ist nicht erfüllt."}
	case CodeForbiddenByRule:
		return text{"A rule forbids this access.", "Eine Regel verbietet diesen Zugriff."}
	case CodeNotRecorded:
		return text{"The decision could not be recorded, so access is refused.", "Die Entscheidung ließ sich nicht festhalten, daher wird der Zugriff verweigert."}
	case CodeNoPolicy:
		return text{"The broker has no policy in force yet.", "Es ist noch keine Richtlinie in Kraft."}
	case CodeIdle:
		return text{"Nothing was sent or received for {limit}, so this access was closed; using the app opens it again.", "Seit {limit} wurde nichts übertragen, daher wurde dieser Zugriff geschlossen; die Nutzung der Anwendung öffnet ihn wieder."}
	case CodeInvalidInput:
		return text{"The request was malformed.", "Die Anfrage war fehlerhaft."}
	default:
		return text{"The decision failed, so access is refused.", "Die Entscheidung ist fehlgeschlagen, daher wird der Zugriff verweigert."}
	}
}

// remedyText is the catalogue of remedies: what to do.
func remedyText(r RemedyCode) text {
	switch r {
	case RemedyMFA:
		return text{"confirm with your second factor", "bestätigen Sie mit Ihrem zweiten Faktor"}
	case RemedySignIn:
		return text{"sign in again", "melden Sie sich neu an"}
	case RemedyStrongKey:
		return text{"sign in with your security key", "melden Sie sich mit Ihrem Sicherheitsschlüssel an"}
	case RemedyUpdateClient:
		return text{"update the Postern client", "aktualisieren Sie den Postern-Client"}
	case RemedyFirewall:
		return text{"turn the firewall on", "schalten Sie die Firewall ein"}
	case RemedyScreenLock:
		return text{"turn the screen lock on", "schalten Sie die Bildschirmsperre ein"}
	case RemedyAntivirus:
		return text{"turn the antivirus on and let it update", "schalten Sie den Virenschutz ein und lassen Sie ihn aktualisieren"}
	case RemedyPatch:
		return text{"install the pending security updates", "installieren Sie die ausstehenden Sicherheitsupdates"}
	case RemedyUpgradeOS:
		return text{"upgrade to a supported version of the operating system", "wechseln Sie auf eine unterstützte Version des Betriebssystems"}
	case RemedyEncryptDisk:
		return text{"encrypt the disk", "verschlüsseln Sie die Festplatte"}
	case RemedyRegisterDevice:
		return text{"register this device by signing in on it", "registrieren Sie dieses Gerät durch Anmelden"}
	case RemedyEnrolMDM:
		return text{"have this device enrolled in management", "lassen Sie dieses Gerät in die Verwaltung aufnehmen"}
	case RemedyHardwareDevice:
		return text{"use a device that keeps its key in hardware", "nutzen Sie ein Gerät, das seinen Schlüssel in Hardware hält"}
	case RemedyWait:
		return text{"try again at {at}", "versuchen Sie es wieder um {at}"}
	default:
		return text{"ask for help", "bitten Sie um Hilfe"}
	}
}

func factText(f string) text {
	switch trust.FactName(f) {
	case trust.OSVersion, trust.OSSupported:
		return text{"operating system supported", "Betriebssystem unterstützt"}
	case trust.Firewall:
		return text{"firewall on", "Firewall an"}
	case trust.ClientVersion:
		return text{"client up to date", "Client aktuell"}
	case trust.PatchLevel:
		return text{"security updates installed", "Sicherheitsupdates installiert"}
	case trust.DiskEncrypted:
		return text{"disk encrypted", "Festplatte verschlüsselt"}
	case trust.ScreenLock:
		return text{"screen lock on", "Bildschirmsperre an"}
	case trust.MDMEnrolled:
		return text{"managed by the organisation", "von der Organisation verwaltet"}
	case trust.Antivirus:
		return text{"antivirus running", "Virenschutz aktiv"}
	case trust.NotJailbroken:
		return text{"system protections intact", "Systemschutz unversehrt"}
	case trust.KeyInHardware:
		return text{"key in hardware", "Schlüssel in Hardware"}
	default:
		return text{f, f}
	}
}

// Text returns the sentence of a reason.
func (r Reason) Text(l Language) string {
	s := reasonText(r.Code).in(l)
	for k, v := range r.Detail {
		if k == "fact" {
			v = factText(v).in(l)
		}
		s = strings.ReplaceAll(s, "{"+k+"}", v)
	}
	return s
}

// Text returns the sentence of a remedy, first letter in lower case, without a full stop.
func (m Remedy) Text(l Language) string {
	parts := make([]string, len(m.Changes))
	for i, c := range m.Changes {
		parts[i] = strings.ReplaceAll(remedyText(c).in(l), "{at}", m.At.UTC().Format("2006-01-02 15:04 UTC"))
	}
	return strings.Join(parts, text{", and ", ", und "}.in(l))
}

// EmployeeText is what the employee reads: the reasons, what to do, whom to ask.
func EmployeeText(l Language, d Decision, remedies []Remedy, ask string) string {
	var s []string
	for _, r := range d.Reasons {
		s = append(s, r.Text(l))
	}
	if d.Verdict == VerdictStepUp && len(remedies) == 0 {
		remedies = []Remedy{{Changes: d.StepUp}}
	}
	if len(remedies) > 0 {
		s = append(s, text{"To get in: ", "So kommen Sie hinein: "}.in(l)+remedies[0].Text(l)+".")
		if remedies[0].Ask != "" {
			ask = remedies[0].Ask
		} else if d.Verdict != VerdictDeny {
			ask = ""
		}
	}
	lead := text{"Ask ", "Fragen Sie "}
	if len(remedies) > 0 {
		lead = text{"If that does not help, ask ", "Sonst fragen Sie "}
	}
	if ask != "" && !d.Verdict.Grants() {
		s = append(s, lead.in(l)+ask+".")
	}
	return strings.Join(s, " ")
}
