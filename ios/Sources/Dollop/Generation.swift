// Generations: a thread that computes, and the stream of its events.
import CDollop
import Foundation

/// The most events that wait for a slow consumer. After that, generation waits.
let waitingEvents = 16

/// A native call that generates: takes the handle, the options, the outcome to fill, and memory for its texts; returns a status.
typealias GenerateCall = @Sendable (
    OpaquePointer, UnsafePointer<dollop_generate_options>, UnsafeMutablePointer<dollop_outcome>, Arena
) throws -> Int32

/// The native chat or session that calls run on, one at a time.
struct Stage: Sendable {
    let handle: Handle
    /// The sampling options that the model's file recommends.
    let sampling: Sampling
    /// The queue of calls.
    let turns = Turns()
    /// Cancels the native call that runs on a handle.
    let cancel: @Sendable (OpaquePointer) -> Void

    /// Stops the current generation, between two events, too, as in a long prompt.
    func stop() { turns.stop(cancelNative) }

    /// Cancels the native call. A handle is a number that is never reused, so a late cancel has no effect.
    fileprivate func cancelNative() {
        if let handle = try? handle.get() { cancel(handle) }
    }

    /// Stops the current generation and closes the handle. The thread that generates keeps what it needs until it returns.
    func close() {
        stop()
        handle.close()
    }

    /// Runs a call that ends by itself, on a thread of its own, after the calls before it.
    ///
    /// - Throws: ``DollopError/Status/busy`` during a generation; what `body` throws.
    func call<Value: Sendable>(_ name: String, _ body: @escaping @Sendable (OpaquePointer) throws -> Value) async throws -> Value {
        let turn = try turns.join()
        return try await onThread(name) { [self] in
            defer { turns.leave(turn) }
            turns.wait(for: turn)
            return try body(handle.get())
        }
    }

    /// Starts a generation on a thread of its own and returns the stream of its events. Releasing the stream or cancelling its
    /// consumer stops the generation.
    func generate(_ options: GenerateOptions, _ call: @escaping GenerateCall) -> AsyncThrowingStream<Event, any Error> {
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
            // The turn ends first, so that the chat is free when the consumer receives the last event.
            turns.leave(turn)
            channel.finish(result)
        }
        let consumer = Consumer(channel: channel, turn: turn, stage: self)
        return AsyncThrowingStream { try await consumer.next() }
    }

    /// Makes the native call, whose events go to `channel`.
    private func run(_ channel: Channel, _ options: GenerateOptions, _ call: GenerateCall) throws -> Outcome {
        // The C interface ignores a cancel before the call, so it is checked here. The conversation stays unchanged.
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

/// Reads the events for a stream, which owns it. Releasing it, as by a `break` out of a loop, stops the generation.
private final class Consumer: Sendable {
    private let channel: Channel
    private let turn: Turns.Turn
    private let stage: Stage

    init(channel: Channel, turn: Turns.Turn, stage: Stage) {
        self.channel = channel
        self.turn = turn
        self.stage = stage
    }

    /// Returns the next event, or nil at the end.
    func next() async throws -> Event? {
        try await channel.next { [self] in leave() }
    }

    /// Stops the generation and drops its events.
    private func leave() {
        stage.turns.abandon(turn, stage.cancelNative)
    }

    deinit { leave() }
}
