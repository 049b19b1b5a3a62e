// One generation: a thread that computes, and the stream of its events.
import CDollop
import Foundation

/// Events that wait for a slow consumer; then generation waits for it.
let waitingEvents = 16

/// A call of C that generates.
typealias GenerateCall = @Sendable (
    OpaquePointer, UnsafePointer<dollop_generate_options>, UnsafeMutablePointer<dollop_outcome>, Arena
) throws -> Int32

/// Where a generation runs: a handle, what stops it, and who else wants it.
struct Stage: Sendable {
    let handle: Handle
    /// The model's own numbers.
    let sampling: Sampling
    let turns = Turns()
    let cancel: @Sendable (OpaquePointer) -> Void

    /// Stops what is generated now, also between two events, as in a long prompt.
    func stop() { turns.stop(cancelNative) }

    /// A handle is a number that is never used twice: a late cancel hits nothing.
    fileprivate func cancelNative() {
        if let handle = try? handle.get() { cancel(handle) }
    }

    /// Stops, and closes the handle. The thread that generates keeps what it needs until it returns.
    func close() {
        stop()
        handle.close()
    }

    /// Runs a call that ends by itself, behind those before it.
    func call<Value: Sendable>(_ name: String, _ body: @escaping @Sendable (OpaquePointer) throws -> Value) async throws -> Value {
        let turn = try turns.join()
        return try await onThread(name) { [self] in
            defer { turns.leave(turn) }
            turns.wait(for: turn)
            return try body(handle.get())
        }
    }

    /// Starts to generate. The stream's end, its release and the cancellation of its consumer end the generation.
    func generate(_ options: GenerationOptions, _ call: @escaping GenerateCall) -> AsyncThrowingStream<Event, any Error> {
        let channel = Channel(capacity: waitingEvents)
        let turn: Turns.Turn
        do {
            turn = try turns.join(channel)
        } catch {
            return AsyncThrowingStream { throw error }
        }
        startThread("generation") { [self] in
            turns.wait(for: turn)
            let result = Result { try run(channel, options, call) }
            // First the turn: who hears of the end finds the chat free.
            turns.leave(turn)
            channel.finish(result)
        }
        let consumer = Consumer(channel: channel, turn: turn, stage: self)
        return AsyncThrowingStream { try await consumer.next() }
    }

    private func run(_ channel: Channel, _ options: GenerationOptions, _ call: GenerateCall) throws -> Outcome {
        // C forgets a cancel that comes before the call. The conversation stays as it was.
        guard channel.isOpen else { return .nothing }
        let arena = Arena()
        return try withExtendedLifetime((arena, channel)) {
            let handle = try handle.get()
            var native = try options.native(arena, over: sampling)
            native.user_data = Unmanaged.passUnretained(channel).toOpaque()
            native.on_event = { event, user in
                guard let event = event?.pointee, let user else { return 1 }
                let channel = Unmanaged<Channel>.fromOpaque(user).takeUnretainedValue()
                guard let event = Event(event) else { return channel.isOpen ? 0 : 1 }
                return channel.push(event) ? 0 : 1
            }
            var outcome = dollop_outcome()
            try check(dollop_outcome_init(&outcome, MemoryLayout.size(ofValue: outcome)))
            try check(call(handle, &native, &outcome, arena))
            return Outcome(outcome)
        }
    }
}

/// What a stream holds on to. When it is released, as by a `break` out of a loop, the generation ends.
private final class Consumer: Sendable {
    private let channel: Channel
    private let turn: Turns.Turn
    private let stage: Stage

    init(channel: Channel, turn: Turns.Turn, stage: Stage) {
        self.channel = channel
        self.turn = turn
        self.stage = stage
    }

    func next() async throws -> Event? {
        try await channel.next { [self] in leave() }
    }

    private func leave() {
        stage.turns.abandon(turn, stage.cancelNative)
    }

    deinit { leave() }
}
