// The screen: the gauge, the conversation, and the text field.
import SwiftUI

/// Shows the chat.
struct ChatView: View {
    @Bindable var model: ChatModel
    @State private var draft = ""
    @FocusState private var isWriting: Bool

    var body: some View {
        NavigationStack {
            VStack(spacing: 0) {
                EngineGauge(model: model)
                Divider()
                conversation
                composer
            }
            .navigationTitle("Dollop")
            .navigationBarTitleDisplayMode(.inline)
            .toolbar {
                Button("Clear", systemImage: "trash") { Task { await model.clear() } }
                    .disabled(!model.isReady)
            }
        }
    }

    private var conversation: some View {
        ScrollViewReader { proxy in
            ScrollView {
                LazyVStack(alignment: .leading, spacing: 12) {
                    ForEach(model.lines) { line in
                        Text(line.text.isEmpty ? "…" : line.text)
                            .textSelection(.enabled)
                            .padding(10)
                            .background(line.role == "user" ? Color.accentColor.opacity(0.15) : Color.gray.opacity(0.12))
                            .clipShape(RoundedRectangle(cornerRadius: 12))
                            .frame(maxWidth: .infinity, alignment: line.role == "user" ? .trailing : .leading)
                            .id(line.id)
                    }
                }
                .padding()
            }
            .onChange(of: model.lines.last?.text) {
                if let last = model.lines.last { proxy.scrollTo(last.id, anchor: .bottom) }
            }
        }
    }

    private var composer: some View {
        VStack(alignment: .leading, spacing: 6) {
            Text(model.status).font(.footnote).foregroundStyle(.secondary)
            HStack {
                TextField("Message", text: $draft, axis: .vertical)
                    .textFieldStyle(.roundedBorder)
                    .focused($isWriting)
                    .onSubmit(send)
                if model.isAnswering {
                    Button("Stop", systemImage: "stop.circle.fill", action: model.stop)
                } else {
                    Button("Send", systemImage: "arrow.up.circle.fill", action: send)
                        .disabled(!model.isReady || draft.isEmpty)
                }
            }
            .labelStyle(.iconOnly)
            .font(.title2)
        }
        .padding()
    }

    private func send() {
        guard !draft.isEmpty else { return }
        model.send(draft)
        draft = ""
    }
}
