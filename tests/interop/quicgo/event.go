package main

// What happens is printed as one JSON object per line. An event keeps its fields in the order they
// were added, so that a line reads like the capsule it stands for.

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"sync"
)

type field struct {
	name  string
	value any
}

type event []field

func newEvent(name string, pairs ...any) event {
	e := event{{"event", name}}
	e.add(pairs...)
	return e
}

// add appends name, value, name, value …
func (e *event) add(pairs ...any) {
	for i := 0; i+1 < len(pairs); i += 2 {
		*e = append(*e, field{pairs[i].(string), pairs[i+1]})
	}
}

// MarshalJSON writes the fields as one object.
func (e event) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, f := range e {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(f.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(f.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

var output sync.Mutex

// emit prints an event, whole lines only, whichever goroutine it comes from.
func emit(e event) {
	line, err := json.Marshal(e)
	if err != nil {
		panic(err) // only values json can write are ever added
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func hexText(b []byte) string { return hex.EncodeToString(b) }
