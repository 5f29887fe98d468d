package broker

import (
	"testing"
	"time"

	"github.com/postern-zt/postern/broker/catalog"
	"github.com/postern-zt/postern/broker/policy"
)

func TestReverifyIntervalFollowsTheClassesInUse(t *testing.T) {
	doc := policy.NewDocument()
	for class, every := range map[policy.Class]time.Duration{
		policy.Public: 20 * time.Minute, policy.Internal: 10 * time.Minute, policy.Confidential: 3 * time.Minute, policy.Restricted: 10 * time.Second,
	} {
		row := doc.Baseline[class]
		row.ReVerify = policy.Duration(every)
		doc.Baseline[class] = row
	}
	rev, err := policy.Compile(policy.Meta{}, doc)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rev     *policy.Revision
		classes []catalog.Class
		want    time.Duration
	}{
		{rev, nil, 5 * time.Minute},
		{rev, []catalog.Class{catalog.Public}, 20 * time.Minute},
		{rev, []catalog.Class{catalog.Public, catalog.Confidential, catalog.Internal}, 3 * time.Minute},
		{rev, []catalog.Class{catalog.Restricted, catalog.Public}, time.Minute},
		{rev, []catalog.Class{catalog.Public, "unheard of"}, time.Minute},
		{nil, []catalog.Class{catalog.Public}, time.Minute},
	} {
		var apps []*catalog.App
		for _, class := range c.classes {
			apps = append(apps, &catalog.App{Class: class})
		}
		if got := reverifyInterval(c.rev, apps); got != c.want {
			t.Errorf("interval with %v = %v, want %v", c.classes, got, c.want)
		}
	}
}
