package catalog

import (
	"time"

	"github.com/postern-zt/postern/proto/ids"
)

// ProposalState is where a proposal stands. An unknown state counts as rejected.
type ProposalState string

// The states of a proposal. A rejected one stays, so that the same wish of a connector at
// each of its starts does not come back as news.
const (
	Pending  ProposalState = "pending"
	Approved ProposalState = "approved"
	Rejected ProposalState = "rejected"
)

// Proposal is what a connector would like to publish: keyed by connector and name. It opens
// nothing before an admin approves it.
type Proposal struct {
	Connector ids.ConnectorID
	Site      ids.SiteID
	Name      string
	Protocol  Protocol
	// Target is the text form that ParseTarget reads.
	Target    string
	State     ProposalState
	At        time.Time
	DecidedAt time.Time
}

// Wish is one app as a connector names it at its start ("wiki=10.0.0.5:80").
type Wish struct {
	Name     string
	Protocol Protocol
	Target   string
}

// Outcome says what became of a wish.
type Outcome string

// The outcomes of Publish.
const (
	// Published: the app is new and in the catalog.
	Published Outcome = "published"
	// Unchanged: the app exists with this very target at this site.
	Unchanged Outcome = "unchanged"
	// Proposed: an admin has to approve it.
	Proposed Outcome = "proposed"
	// Refused: an admin rejected the same wish before.
	Refused Outcome = "refused"
)
