package controlplane

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	atLine = regexp.MustCompile(`^line (\d+): `)
	// By the parser of the library, as opposed to its scanner; its lines count from 0.
	ofParser      = regexp.MustCompile(`^did not find expected (<document start>|node content|'-' indicator|key$|',' or )`)
	unknownAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced$`)
)

// syntaxFault says where a file is no YAML. The library says it for some faults, and leaves the line out if it takes it for 0.
func syntaxFault(f file, err error) fault {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	var line int
	if m := atLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
		if ofParser.MatchString(text) {
			line++
		}
	} else if m := unknownAnchor.FindStringSubmatch(text); m != nil {
		line = lineOf(f.text, func(text []byte) bool { return bytes.Contains(text, []byte("*"+m[1])) })
	} else {
		line = lineOf(f.text, func(text []byte) bool { return !utf8.Valid(text) || bytes.ContainsFunc(text, isControl) })
	}
	return fault{place{f.name, line}, text + "; correct the YAML"}
}

func isControl(r rune) bool { return (r < ' ' && r != '\t' && r != '\r') || r == 0x7f }

// lineOf is the first that is so, or 1.
func lineOf(text []byte, is func([]byte) bool) int {
	line := 1
	for text := range bytes.SplitSeq(text, []byte("\n")) {
		if is(text) {
			return line
		}
		line++
	}
	return 1
}
