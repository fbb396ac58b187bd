package config

import (
	"testing"

	"go.yaml.in/yaml/v3"
)

// TestBudgetTexts reads each text, and writes it as the text that it stands for; "" for one that is refused.
func TestBudgetTexts(t *testing.T) {
	for text, want := range map[string]string{
		"1%": "1%", "0.5%": "0.5%", "100%": "100%", "0.01%": "0.01%", "off": "off", "33.3%": "33.3%", "2 %": "2%",
		"0%": "", "-1%": "", "101%": "", "NaN%": "", "Inf%": "", "1": "", "0.01": "", "%": "", "one%": "", "Off": "",
	} {
		var got Share
		check(t, text, want, &got, func() string { return got.String() })
	}
	for text, want := range map[string]string{
		"128MiB": "128MiB", "1GiB": "1GiB", "1024MiB": "1GiB", "1536MiB": "1536MiB", "100000KiB": "100000KiB", "64 MiB": "64MiB", "off": "off",
		"0MiB": "", "-1MiB": "", "1.5GiB": "", "128MB": "", "128": "", "MiB": "", "99999999999GiB": "", "OFF": "",
	} {
		var got Bytes
		check(t, text, want, &got, func() string { return got.String() })
	}
}

func check(t *testing.T, text, want string, into any, got func() string) {
	t.Helper()
	err := yaml.Unmarshal([]byte(text), into)
	if (err != nil) != (want == "") {
		t.Errorf("%q: error %v", text, err)
	}
	if err == nil && got() != want {
		t.Errorf("%q: %s, want %s", text, got(), want)
	}
}
