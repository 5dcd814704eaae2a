package jobwire

import (
	"encoding/json"
	"fmt"
	"strings"

	pb "github.com/jobwire/jobwire/clients/go/jobwirev1"
)

const jsonType = "application/json"

// Encode makes a payload of a value: bytes as they are, everything else as JSON. A *Payload is passed through.
//
// The JSON travels as text, so that no integer is squeezed into a double on the way.
func Encode(value any) (*pb.Payload, error) {
	switch value := value.(type) {
	case *pb.Payload:
		return value, nil
	case []byte:
		return &pb.Payload{Body: &pb.Payload_Data{Data: value}}, nil
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return &pb.Payload{Body: &pb.Payload_Text{Text: string(text)}, ContentType: jsonType}, nil
}

// Decode reads a payload into what a pointer points to: a []byte takes the bytes, a *Payload the payload itself, a string
// also text that is no JSON, and everything else what the JSON means. No document reads as null, as bytes as nil. A body
// that was left out cannot be read.
func Decode(payload *pb.Payload, into any) error {
	if into, ok := into.(**pb.Payload); ok {
		*into = payload
		return nil
	}
	if payload.GetOmitted() {
		return fmt.Errorf("the body of %d bytes was left out: Get or Result has it", payload.GetSizeBytes())
	}
	document, isJSON, err := body(payload)
	if err != nil {
		return err
	}
	switch into := into.(type) {
	case *[]byte:
		if payload.GetBody() == nil {
			document = nil
		}
		*into = document
		return nil
	case *string:
		if !isJSON {
			*into = string(document)
			return nil
		}
	}
	if !isJSON {
		return fmt.Errorf("the payload is %s, not JSON", payload.GetContentType())
	}
	return json.Unmarshal(document, into)
}

func body(payload *pb.Payload) (document []byte, isJSON bool, err error) {
	switch body := payload.GetBody().(type) {
	case nil:
		return []byte("null"), true, nil
	case *pb.Payload_Json:
		document, err = body.Json.MarshalJSON()
		return document, true, err
	case *pb.Payload_Text:
		document = []byte(body.Text)
	case *pb.Payload_Data:
		document = body.Data
	}
	essence, _, _ := strings.Cut(payload.GetContentType(), ";")
	essence = strings.ToLower(strings.TrimSpace(essence))
	return document, essence == jsonType || strings.HasSuffix(essence, "+json"), nil
}
