// Package whoami is the service of the example:
//
//	service WhoAmI {
//	  rpc Ask(google.protobuf.Empty) returns (google.protobuf.StringValue);
//	}
//
// For a service of your own protoc-gen-go-grpc generates this. Here it is written
// by hand, so that the example needs no generator.
package whoami

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const method = "/example.WhoAmI/Ask"

// A Server answers Ask.
type Server interface {
	Ask(context.Context, *emptypb.Empty) (*wrapperspb.StringValue, error)
}

// Register registers the service.
func Register(r grpc.ServiceRegistrar, s Server) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: "example.WhoAmI",
		HandlerType: (*Server)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Ask", Handler: handle}},
	}, s)
}

func handle(s any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	in := new(emptypb.Empty)
	if err := decode(in); err != nil {
		return nil, err
	}
	ask := func(ctx context.Context, in any) (any, error) { return s.(Server).Ask(ctx, in.(*emptypb.Empty)) }
	if intercept == nil {
		return ask(ctx, in)
	}
	return intercept(ctx, in, &grpc.UnaryServerInfo{Server: s, FullMethod: method}, ask)
}

// Ask calls the server.
func Ask(ctx context.Context, c grpc.ClientConnInterface, options ...grpc.CallOption) (string, error) {
	out := new(wrapperspb.StringValue)
	err := c.Invoke(ctx, method, new(emptypb.Empty), out, options...)
	return out.GetValue(), err
}
